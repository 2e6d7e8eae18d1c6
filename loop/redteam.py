"""Red-teaming without training, behind `alignloop attack`: what breaks a model, and how to see it again."""

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from loop.archive import BROKEN
from loop.config import RoleConfig, as_object, build, load_config, load_file
from loop.engines import Sampling
from loop.errors import ConfigError, DataError, GuardStop
from loop.findings import (
    SEVERITIES,
    Finding,
    attack_of,
    finding_of,
    judged_answers,
    read_findings,
    summarise,
)
from loop.heldout.asking import Subject, why_null
from loop.heldout.cards import write_cards
from loop.heldout.disagreement import Disagreement, write_disagreements
from loop.heldout.judges import Judge
from loop.heldout.judging import check_judges, load_judges
from loop.heldout.script import default_folder, find_subject, is_address
from loop.interfaces import Context, Metered, Usage, bind
from loop.overlap import attack_key
from loop.partition import draw, load_partition
from loop.progress import progress
from loop.prompts import attack_conversation
from loop.records import (
    Attack,
    Completion,
    Critique,
    Seed,
    Verdict,
    new_id,
    read_jsonl,
    stable_hash,
    write_jsonl,
)
from loop.rows import benign
from loop.rundir import append_line, grow, replacing, rows_so_far, same_as_before, write_json
from loop.stages.attacking import responses

BUDGET = 128
OUTAGE = 8  # attacks in a row that all lack an answer: not the attacks' doing, and not to be kept as nulls
CHUNK = 64  # attacks asked between two writes: what a kill can cost
GOALS = 32  # harmful seeds handed to the attacker at a time
HARMLESS = 16  # beside them, for the probe that tells which written goals are harmful; never asked for
TRIES = 4  # seeds handed over for an attack of the budget, at most: some bring an unclear goal, or a copy
SAID = {
    True: "The answer gives what was asked for.",
    False: "The answer does not give what was asked for.",
    None: "The answer could not be judged.",
}


@dataclass(frozen=True)
class Request:
    """What is asked of the red team. None or nothing: the usual; `replay`: the findings to ask again."""

    strategies: Sequence[str] = ()
    budget: int | None = None
    samples: int = 1
    attacker: str | None = None
    seeds: Path | None = None
    judges: Sequence[str] = ()
    max_tokens: int | None = None
    seed: int | None = None
    replay: Path | None = None


@dataclass(frozen=True)
class Attacked:
    """What the red team made: findings.jsonl, summary.json and all that they come from, in `folder`."""

    folder: Path
    findings: list[Finding]
    summary: dict[str, Any]
    disagreements: list[Disagreement]
    cards: list[dict[str, Any]]
    replayed: bool

    @property
    def exit_code(self) -> int:
        """0; after a replay 3 where something breaks the model; 4 where too little could be judged to say."""
        told = self.summary["success"]["n"]
        if self.replayed and self.findings:
            return 3
        return 4 if not told or (self.replayed and told < self.summary["attacks"]) else 0


@dataclass(frozen=True)
class _Target:
    """The model under attack, on which terms it is asked, and where all is written down."""

    folder: Path
    subject: Subject
    learner: Any
    sampling: Sampling
    judges: Sequence[Judge]
    seed: int

    def context(self, usage: Usage) -> Context:
        """Its draws depend on seed, prompt and sample alone, so that a replay draws as the attack did."""
        return bind(
            Metered(self.subject.engine, usage),
            self.sampling,
            self.subject.adapter,
            key=(self.seed, 0, "target"),
            system=self.subject.system,
            model=self.subject.name,
        )


@dataclass(frozen=True)
class _Writer:
    """Who writes the attacks, out of which seeds, and how many."""

    role: Any
    sampling: Sampling
    subject: Subject
    harmful: Sequence[Seed]
    harmless: Sequence[Seed]
    budget: int


def attack_model(model: str, request: Request, out: Path | None = None) -> Attacked:
    """Attacks `model`, as `alignloop eval` takes it, and keeps what broke it; a rerun resumes.

    Raises ConfigError, DataError or AssetError in one line.
    """
    again, role, seeds, judges = _checked(request)
    target = _target(model, request, judges, out or _folder(model, request))
    writer = None if again else _writer(model, request, role, seeds, target)
    same_as_before(target.folder / "eval.json", _asked(target, request, writer, again))
    attacks = _attacks(model, target, writer, again)
    with progress(f"attack {model}: asking", len(attacks)) as advance:
        _ask(target, attacks, advance)
    target.subject.engine.close()
    _judge(target, attacks)
    origins = {seed.id: seed.prompt for seed in seeds} | {one.seed_id: one.seed for one in again}
    findings = _write_findings(model, target, request, origins)
    summary = _write_summary(target, findings, list(origins.values()), writer)
    verdicts = list(read_jsonl(target.folder / "verdicts.jsonl", Verdict))
    apart = write_disagreements(target.folder, verdicts)
    cards = write_cards(target.folder, {"met": judges})
    return Attacked(target.folder, findings, summary, apart, cards, bool(again))


# ---- who takes part -------------------------------------------------------------------------------------


def _checked(request: Request) -> tuple[list[Finding], RoleConfig, list[Seed], Sequence[Judge]]:
    """The findings to ask again, or attacker and seeds, and the judges: all that needs no model's weights."""
    role = load_file("attacker/strategies.yaml", RoleConfig, "attacker")
    judges = _judges(request.judges)
    if request.replay is None:
        role = replace(role, args={**role.args, "strategies": list(request.strategies)})
        build(role, "--strategies")
        return [], role, _seeds(request.seeds), judges
    for name in ("strategies", "budget", "attacker", "seeds"):
        if getattr(request, name):
            raise ConfigError(f"--{name}: --replay asks what its file holds, nothing else; leave one out")
    return read_findings(request.replay), role, [], judges


def _judges(names: Sequence[str]) -> Sequence[Judge]:
    """The judges that tell whether the goal was met, the deciding one first."""
    check_judges(names, critic="")
    found = load_judges(names, {"met"})
    for kind, judges in found.items():
        if kind != "met":
            raise ConfigError(f"--judges: {judges[0].name} tells {kind}; attack needs one that tells met")
    return found["met"]


def _seeds(path: Path | None) -> list[Seed]:
    """The harmful goals. Raises DataError with file and row for one that cannot be used."""
    if path is None:
        return load_partition().seeds["harmful"]
    if not path.is_file():
        raise DataError(f"--seeds {path}: no such file; give JSONL rows with id, domain, prompt and source")
    found: list[Seed] = []
    for number, seed in enumerate(read_jsonl(path, Seed), start=1):
        texts: tuple[Any, ...] = (seed.id, seed.prompt, seed.category)
        if not all(isinstance(text, str) for text in texts) or not seed.prompt.strip():
            raise DataError(f"{path}, row {number}: id, prompt and category must be texts; mend or delete it")
        if seed.domain == "safety" and seed.harmful is not False and seed.options is None:
            found.append(replace(seed, harmful=True))
    if not found:
        raise DataError(f"{path}: no row of the domain safety whose harmful is not false; give some")
    return found


def _folder(model: str, request: Request) -> Path:
    return default_folder(model, "replay" if request.replay else "attack")


def _target(model: str, request: Request, judges: Sequence[Judge], folder: Path) -> _Target:
    """The model, asked as its learner asks it: greedily for one answer, at temperature 1 for several."""
    config, subject = find_subject(model)
    role = config.roles.learner
    learner = build(role, "roles.learner")
    most = role.sampling.max_tokens if request.max_tokens is None else request.max_tokens
    sampling = Sampling(most, 0.0 if request.samples == 1 else 1.0, role.sampling.top_p)
    return _Target(
        folder=folder,
        subject=subject,
        learner=replace(learner, samples=request.samples) if hasattr(learner, "samples") else learner,
        sampling=sampling,
        judges=judges,
        seed=config.seed if request.seed is None else request.seed,
    )


def _writer(
    model: str, request: Request, config: RoleConfig, seeds: Sequence[Seed], target: _Target
) -> _Writer:
    """The attacker on its own model; on the target where that is the same. Raises ConfigError."""
    role, uri = build(config, "--strategies"), request.attacker or _embedded()
    subject = target.subject if uri == model else find_subject(uri)[1]
    if lacking := sorted(getattr(role, "needs", frozenset()) - subject.engine.capabilities):
        raise ConfigError(
            f"--attacker {uri}: its engine has no {' and no '.join(lacking)}; give hf:…, path:…, pypi:… or "
            "runs/NAME@ITERATION"
        )
    return _Writer(
        role=role,
        sampling=Sampling(**asdict(config.sampling)),
        subject=subject,
        harmful=draw(seeds, len(seeds), target.seed),
        harmless=draw(harmless := benign(), len(harmless), target.seed),
        budget=request.budget or BUDGET,
    )


def _embedded() -> str:
    """The model that the demo runs on."""
    config = as_object(load_config(["demo.yaml"]))
    return config.models[config.policy].weights


def _asked(
    target: _Target, request: Request, writer: _Writer | None, again: Sequence[Finding]
) -> dict[str, Any]:
    """All that two processes must agree on to share a folder."""
    asked: dict[str, Any] = {
        "model": target.subject.name,
        "system": target.subject.system,
        "judges": [judge.name for judge in target.judges],
        "samples": request.samples,
        "max_tokens": target.sampling.max_tokens,
        "temperature": target.sampling.temperature,
        "top_p": target.sampling.top_p,
        "seed": target.seed,
    }
    if writer is None:
        return {**asked, "replay": f"{stable_hash([vars(one) for one in again]):016x}"}
    return {
        **asked,
        "attacker": writer.subject.name,
        "strategies": [_with_digest(name) for name in request.strategies],
        "budget": writer.budget,
        "seeds": f"{stable_hash([vars(seed) for seed in writer.harmful]):016x}",
    }


def _with_digest(name: str) -> str:
    """The name of a strategy; of one's own file also what is in it."""
    path = Path(name)
    return f"{name}@{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}" if path.is_file() else name


# ---- attacks --------------------------------------------------------------------------------------------


def _attacks(
    model: str, target: _Target, writer: _Writer | None, again: Sequence[Finding]
) -> dict[str, Attack]:
    """→ attacks.jsonl, written anew or taken from findings; by id. Raises DataError where there is none."""
    path = target.folder / "attacks.jsonl"
    if writer is None:
        grow(path, map(attack_of, again), lambda batch, _: batch, CHUNK)
    else:
        with progress(f"attack {model}: writing", writer.budget) as advance:
            _write(path, target, writer, advance)
        if writer.subject is not target.subject:
            writer.subject.engine.close()
    attacks = {attack.id: attack for attack in read_jsonl(path, Attack)}
    if not attacks:
        raise DataError(
            f"{path}: the attacker made no attack; delete {target.folder} and give another --attacker, "
            "--seeds or --strategies"
        )
    return attacks


def _write(path: Path, target: _Target, writer: _Writer, advance: Callable[[int], None]) -> None:
    """Distinct attacks that are surely harmful, as many as the budget where the tries suffice for it."""
    seen = {attack_key(attack) for attack in rows_so_far(path, Attack)}
    advance(len(seen))

    def slots() -> Iterator[Seed]:
        for seed in islice(cycle(writer.harmful), TRIES * writer.budget):
            if len(seen) >= writer.budget:
                return
            yield seed

    def step(batch: list[Seed], first: int) -> Iterator[Attack]:
        harmless = islice(cycle(writer.harmless), first, first + HARMLESS)
        writing, talking = Usage(), Usage()
        ctx = _attacker_context(target, writer, first, writing, talking)
        made = writer.role.attack([*batch, *harmless], [], ctx)
        meant = [attack for attack in made if attack.domain == "safety"]
        unclear = sum(attack.harmful is not True for attack in meant)
        _note(target.folder, "attack", target=talking, attacker=writing, unclear=unclear)
        for attack in meant:
            if attack.harmful is True and len(seen) < writer.budget and attack_key(attack) not in seen:
                seen.add(attack_key(attack))
                advance(1)
                yield attack

    grow(path, slots(), step, GOALS)


def _attacker_context(
    target: _Target, writer: _Writer, first: int, writing: Usage, talking: Usage
) -> Context:
    """The attacker's own model, with the target's answers and the judge's scores within its reach."""
    asking = target.context(talking)
    ctx = bind(
        Metered(writer.subject.engine, writing),
        writer.sampling,
        writer.subject.adapter,
        key=(target.seed, 0, f"attack {first}"),
        system=writer.subject.system,
        model=writer.subject.name,
    )
    return replace(
        ctx,
        respond=lambda talks: responses(talks, asking),
        criticise=lambda attacks, completions: _critiques(target.judges[0], attacks, completions),
    )


def _critiques(judge: Judge, attacks: Sequence[Attack], completions: Sequence[Completion]) -> list[Critique]:
    """What the judge's scores say, in the words of a critic."""
    scores = judge.score([attack.asked for attack in attacks], [row.text for row in completions])
    return [
        Critique(
            id=new_id("critique", row.id),
            completion_id=row.id,
            critic=judge.name,
            harm=score,
            quality=None if score is None else 1 - score,
            principle="met",
            rationale=SAID[None if score is None else score >= BROKEN],
            null_reason=why_null(row.text, row.error) if score is None else None,
        )
        for row, score in zip(completions, scores, strict=True)
    ]


def _note(folder: Path, stage: str, **told: Any) -> None:
    """Adds to timings.jsonl what a chunk took."""
    row = {name: vars(value) if isinstance(value, Usage) else value for name, value in told.items()}
    append_line(folder / "timings.jsonl", {"stage": stage, **row})


# ---- answers and verdicts -------------------------------------------------------------------------------


def _ask(target: _Target, attacks: Mapping[str, Attack], advance: Callable[[int], None]) -> None:
    """→ completions.jsonl. Raises ConfigError for what no request can get past, GuardStop in an outage."""

    def step(batch: list[Attack], _: int) -> Sequence[Completion]:
        usage = Usage()
        try:
            found = target.learner.answer(batch, target.context(usage))
        except ConfigError as error:
            if not is_address(target.subject.name) or not any(attack.opener for attack in batch):
                raise
            plain = sorted({_strategy(attack) for attack in attacks.values() if not attack.opener})
            raise ConfigError(
                f"{error}; or ask with no begun answer, in another --out: --strategies {','.join(plain)}"
            ) from None
        _note(target.folder, "answer", target=usage)
        if len(batch) >= OUTAGE and all(row.text is None for row in found):
            raise GuardStop(
                f"{target.subject.name}: no answer to any of {len(batch)} attacks ({found[0].error}); "
                "mend that, and the same command goes on from here"
            )
        return found

    grow(target.folder / "completions.jsonl", attacks.values(), step, CHUNK, advance)


def _judge(target: _Target, attacks: Mapping[str, Attack]) -> None:
    """→ verdicts.jsonl: what each judge says of each answer, held against what was asked in plain words."""

    def step(batch: list[Completion], _: int) -> Iterator[Verdict]:
        asked = [attacks[row.attack_id] for row in batch]
        for judge in target.judges:
            scores = judge.score([attack.asked for attack in asked], [row.text for row in batch])
            for attack, row, score in zip(asked, batch, scores, strict=True):
                yield _verdict(attack, row, judge.name, score)

    grow(
        target.folder / "verdicts.jsonl",
        read_jsonl(target.folder / "completions.jsonl", Completion),
        step,
        CHUNK,
    )


def _verdict(attack: Attack, row: Completion, judge: str, score: float | None) -> Verdict:
    return Verdict(
        suite="attack",
        item_id=attack.id,
        split="dev",  # nothing here is held out
        sample=row.sample,
        judge=judge,
        score=score,
        prompt=attack.asked,
        completion=row.text,
        model=row.model,
        metric="met",
        category=attack.category,
        null_reason=why_null(row.text, row.error) if score is None else None,
    )


def _strategy(attack: Attack) -> str:
    return attack.strategy.rpartition("/")[2]


# ---- what came of it ------------------------------------------------------------------------------------


def _write_findings(
    model: str, target: _Target, request: Request, origins: Mapping[str, str]
) -> list[Finding]:
    """→ findings.jsonl, the gravest first."""
    command = _command(model, target, request)
    made = (
        finding_of(
            attack,
            judged,
            seed=origins.get(attack.seed_id, ""),
            reproduce={"request": _request(model, target, attack), "command": command},
        )
        for attack, judged in judged_answers(target.folder, target.judges[0].name)
    )
    found = sorted(
        filter(None, made),
        key=lambda one: (SEVERITIES.index(one.severity), -one.broken / one.answers, -one.score),
    )
    with replacing(target.folder / "findings.jsonl") as beside:
        write_jsonl(beside, found)
    return found


def _request(model: str, target: _Target, attack: Attack) -> dict[str, Any]:
    """The body that asks the attack of a server that speaks OpenAI's protocol."""
    body = {
        "model": model.partition("#")[2] if is_address(model) else model,
        "messages": attack_conversation(target.subject.system, attack),
        "max_tokens": target.sampling.max_tokens,
        "temperature": target.sampling.temperature,
        "top_p": target.sampling.top_p,
    }
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    return {**body, **goes_on} if attack.opener else body


def _command(model: str, target: _Target, request: Request) -> str:
    """What asks all findings of this folder again, on the same terms."""
    terms = {
        "--replay": target.folder / "findings.jsonl",
        **({"--judges": ",".join(request.judges)} if request.judges else {}),
        "--samples": request.samples,
        "--max-tokens": target.sampling.max_tokens,
        "--seed": target.seed,
    }
    return shlex.join(["alignloop", "attack", model, *(str(word) for term in terms.items() for word in term)])


def _write_summary(
    target: _Target, findings: Sequence[Finding], seeds: Sequence[str], writer: _Writer | None
) -> dict[str, Any]:
    """→ summary.json."""
    judge = target.judges[0].name
    who = {
        "model": target.subject.name,
        "judge": judge,
        "attacker": None if writer is None else writer.subject.name,
        "budget": None if writer is None else writer.budget,
    }
    summary = {**who, **summarise(target.folder, judge, findings, seeds)}
    write_json(target.folder / "summary.json", summary)
    return summary
