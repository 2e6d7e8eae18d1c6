"""A run that is open: its config, directory, roles, seeds and engines, and where its time goes."""

import hashlib
import json
import resource
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import DictConfig, OmegaConf

from loop import __version__
from loop.assets import digest_of, model_dir
from loop.config import SEATS, WHERE_IT_RUNS, Config, ModelConfig, as_object, build, is_secret, source_digest
from loop.contamination import Guard
from loop.engines import Engine, Sampling
from loop.errors import ConfigError
from loop.interfaces import Context, Metered, Usage, bind
from loop.labels import labels_path, read_labels
from loop.overlap import normalise
from loop.partition import Dropped, draw, load_partition
from loop.progress import progress
from loop.records import DOMAINS, Seed, read_jsonl, stable_hash
from loop.rows import Item
from loop.rundir import RunDir, append_line, claim, log, read_json, replacing


@dataclass(frozen=True)
class Policy:
    """A model at some point of a run: the iteration that made it (0: as it was given) and its adapter."""

    number: int
    adapter: str | None
    name: str


@dataclass
class Engines:
    """The models of a run, each loaded when it is first asked for and shared by all roles that name it."""

    models: Mapping[str, ModelConfig]
    loaded: dict[str, Engine] = field(default_factory=dict[str, Engine])

    def get(self, name: str) -> Engine:
        """The engine of `models.<name>`."""
        if name not in self.loaded:
            entry = self.models[name]
            path = str(model_dir(entry.weights))
            self.loaded[name] = build(entry.engine, f"models.{name}.engine", path, model=name)
        return self.loaded[name]

    def close(self) -> None:
        """Gives the memory of all of them back."""
        for engine in self.loaded.values():
            engine.close()
        self.loaded.clear()


@dataclass
class Meter:
    """What a stage tells as it goes: rows done, and what its engines were asked for."""

    advance: Callable[[int], None]
    elapsed: Callable[[], float]
    usage: Usage
    rows: int = 0


@dataclass(frozen=True)
class Session:
    """What every stage needs, and nothing that changes while a run lasts."""

    config: Config
    run: RunDir
    roles: Mapping[str, Any]
    seeds: Mapping[str, list[Seed]]
    engines: Engines
    dropped: Sequence[Dropped] = ()

    @cached_property
    def digests(self) -> dict[str, str]:
        """The content digest of each model's weights."""
        return {name: digest_of(entry.weights) for name, entry in self.config.models.items()}

    def weights(self, name: str) -> Path:
        """The folder of the model `models.<name>`, as it is without any adapter."""
        return model_dir(self.config.models[name].weights)

    def policy(self, number: int) -> Policy:
        """The policy that iteration `number` made (0: the base model)."""
        return self._made(self.config.policy, number, "adapter")

    def attacker(self, number: int) -> Policy:
        """The attacker that iteration `number` trained (0: as it was given)."""
        return self._made(self.config.model_of("attacker"), number, "attacker/adapter")

    def attackers(self, number: int) -> list[Policy]:
        """The attacker as it was given, then those whose training passed, up to iteration `number`."""
        gates = {k: self.run.iteration(k) / "attacker" / "gate.json" for k in range(1, number + 1)}
        passed = [k for k, gate in gates.items() if gate.exists() and read_json(gate)["passed"]]
        return [self.attacker(k) for k in (0, *passed)]

    def _made(self, name: str, number: int, place: str) -> Policy:
        """The model `models.<name>` with the adapter that iteration `number` made (0: without)."""
        base = f"{name}@{self.digests[name][:12]}"
        if number == 0:
            return Policy(0, None, base)
        adapter = self.run.iteration(number) / place
        return Policy(number, str(adapter), f"{base}+{_digest(adapter / 'adapter_model.safetensors')[:12]}")

    def policy_before(self, number: int) -> Policy:
        """The policy last promoted before iteration `number`."""
        promoted = [
            done
            for done in self.run.finished()
            if done < number and read_json(self.run.iteration(done) / "gate.json")["promoted"]
        ]
        return self.policy(max(promoted, default=0))

    def context(
        self,
        seat: str,
        policy: Policy,
        iteration: int,
        stage: str,
        usage: Usage,
        trained: Policy | None = None,
    ) -> Context:
        """What the role in `seat` is handed in `stage`; `stage` also keys its randomness.

        A role on the policy speaks with the adapter of `policy`, another with that of `trained`, if any.
        """
        role = getattr(self.config.roles, seat)
        name = self.config.model_of(seat)
        speaker = policy if role.model == "policy" else trained or self._made(name, 0, "")
        return bind(
            self.metered(name, usage),
            Sampling(**asdict(role.sampling)),
            speaker.adapter,
            key=(self.config.seed, iteration, stage),
            system=self.config.system,
            model=speaker.name,
        )

    def metered(self, name: str, usage: Usage) -> Metered:
        """The engine of a model; loading it, which the first stage that asks pays for, is engine time too."""
        start = perf_counter()
        engine = self.engines.get(name)
        usage.seconds += perf_counter() - start
        return Metered(engine, usage)

    @contextmanager
    def stage(self, iteration: int, name: str, total: int | None = None) -> Generator[Meter]:
        """Times a stage and shows its progress; one line goes to the log, one to timings.jsonl."""
        start, usage = perf_counter(), Usage()
        with progress(f"iteration {iteration}  {name:<10}", total) as show:

            def advance(count: int) -> None:
                meter.rows += count
                show(count)

            meter = Meter(advance, lambda: perf_counter() - start, usage)
            yield meter
        seconds = perf_counter() - start
        line: dict[str, Any] = {"iteration": iteration, "stage": name, "rows": meter.rows}
        line |= {"seconds": round(seconds, 3), "engine_seconds": round(usage.seconds, 3)}
        line |= {"calls": usage.calls, "tokens": usage.tokens, "peak_mib": _peak_mib(name == "train")}
        append_line(self.run.path("timings.jsonl"), line)
        log(self.run, f"iteration {iteration}  {name:<10} {meter.rows:>7} rows  {seconds:8.1f} s")


def _peak_mib(children: bool) -> int:
    """The most memory that this process has held so far, or the largest of those that it has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return usage.ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def open_session(tree: DictConfig, argv: Sequence[str]) -> Session:
    """Validates everything, claims the run directory and builds the roles; loads no weights."""
    session = prepare(tree)
    claim(
        session.run,
        parts_of(session),
        {"models": session.digests, "dropped": _counted(session.dropped)},
        argv,
    )
    with replacing(session.run.path("config.yaml")) as beside:
        beside.write_text(OmegaConf.to_yaml(tree, resolve=False), encoding="utf-8")
    write_ledger(session)
    _write_dropped(session)
    return session


def prepare(tree: DictConfig) -> Session:
    """All that can be checked without weights and without writing anything."""
    from loop.training_options import validate, validate_launch

    config = as_object(tree)
    validate(config.train.dpo, config.train.lora)
    validate({**config.train.dpo, **config.attacks.self_play.dpo}, {}, "attacks.self_play")
    if config.train.launcher == "accelerate":
        validate_launch(config.train.accelerate)
    _check_evals(config)
    seeds, dropped = _seeds(config)
    roles = {seat: build(getattr(config.roles, seat), f"roles.{seat}") for seat in SEATS}
    for seat, role in roles.items():
        _check_needs(seat, role, config)
    _check_self_play(roles["attacker"], config)
    return Session(
        config=config,
        run=RunDir(Path(config.runs) / config.name),
        roles=roles,
        seeds=seeds,
        engines=Engines(config.models),
        dropped=dropped,
    )


def _check_evals(config: Config) -> None:
    """Suites, metrics and the gate must exist and fit each other, and no judge may be the critic."""
    from loop.heldout.gate import check_gate
    from loop.heldout.judging import check_judges
    from loop.heldout.suites import find_suites

    suites = find_suites(config.heldout.suites)
    for key in ("limit", "samples"):
        for name in getattr(config.heldout, key):
            if name not in suites:
                raise ConfigError(f"heldout.{key}: no suite {name!r}; there are {', '.join(suites)}")
    check_gate(suites, config.gate.primary, config.gate.margins)
    check_judges(config.heldout.judges, config.roles.critic.target)
    if config.roles.critic.target.startswith("loop.heldout."):
        raise ConfigError("roles.critic.target: a judge must not be the critic; name another class")


def _check_needs(seat: str, role: Any, config: Config) -> None:
    """A role that needs hidden states is refused on an engine that has none, before anything is loaded."""
    from loop.config import load_target

    name = config.model_of(seat)
    target = config.models[name].engine.target
    offered = getattr(load_target(target, f"models.{name}.engine.target"), "capabilities", None)
    # An engine whose class says nothing (a property, a function) shows what it has when it is asked.
    declared = isinstance(offered, frozenset | set)
    lacking = sorted(str(need) for need in getattr(role, "needs", frozenset()) - offered) if declared else []
    if lacking:
        raise ConfigError(f"roles.{seat}: needs {', '.join(lacking)}, which {target} (models.{name}) lacks")


def _check_self_play(attacker: Any, config: Config) -> None:
    """An attacker can be trained if it rehearses, on a model of its own name."""
    from loop.interfaces import SelfPlayer

    plan, role = config.attacks.self_play, config.roles.attacker
    if not plan.rehearsals:
        return
    if not isinstance(attacker, SelfPlayer):
        raise ConfigError(f"attacks.self_play.rehearsals: {role.target} has no rehearse; set it to 0")
    if role.model == "policy":
        raise ConfigError(
            "attacks.self_play.rehearsals: the attacker speaks with the policy's own adapter; name its model "
            f"in roles.attacker.model ({config.policy}, the base of the policy, will do)"
        )
    if plan.rehearsals < 0 or plan.min_pairs < 1:
        raise ConfigError("attacks.self_play: rehearsals is 0 or more, min_pairs 1 or more")


def _seeds(config: Config) -> tuple[dict[str, list[Seed]], list[Dropped]]:
    """The human rows that this run may use, by use, and those that were left out, with the reason.

    Each use is drawn within its budget; the user's own rows are added. None is near a held-out item. Raises
    ConfigError for a labelled row that a judge is fitted on.
    """
    budgets = {
        use: getattr(config.seeds, use) for use in ("harmful", "benign", "toxicity", "legal", "critic")
    }
    seeds: dict[str, list[Seed]] = {use: [] for use in budgets}
    if not any(budgets.values()) and not config.seeds.files:
        return seeds, []
    partition = load_partition()
    dropped, guard = list(partition.dropped), Guard(held_out_items(config))
    wanted: list[tuple[str, str, Seed]] = []
    for use, budget in budgets.items():
        if budget > len(partition.seeds[use]):
            raise ConfigError(f"seeds.{use}: {budget} rows asked for, there are {len(partition.seeds[use])}")
        wanted += [(use, use, seed) for seed in draw(partition.seeds[use], budget, config.seed)]
    judged = {(normalise(row.prompt), normalise(row.response or "")) for row in partition.seeds["judge"]}
    for file in config.seeds.files:
        if not Path(file).is_file():
            raise ConfigError(f"seeds.files: no such file {file!r}")
        for seed in read_jsonl(Path(file), Seed):
            if (normalise(seed.prompt), normalise(seed.response or "")) in judged:
                raise ConfigError(f"seeds.files: {file}: a judge is fitted on seed {seed.id}; leave it out")
            wanted.append((_use_of(seed, file), file, seed))
    for use, origin, seed in wanted:
        if found := guard.match(seed.id, "seed", [seed.prompt]):
            dropped.append(Dropped(origin, seed.id, f"near held-out {found.item_id}", seed.source))
        else:
            seeds[use].append(seed)
    return seeds, dropped


def held_out_items(config: Config) -> list[Item]:
    """Every item of both halves, which nothing may be trained on: built-in suites' and the config's own."""
    from loop.heldout.suites import BUILT_IN, find_suites

    suites = {**BUILT_IN, **find_suites(config.heldout.suites)}
    return [item for suite in suites.values() for item in suite.items()]


def _use_of(seed: Seed, file: str) -> str:
    if seed.domain not in DOMAINS:
        raise ConfigError(f"{file}: seed {seed.id} has domain {seed.domain!r}; known: {', '.join(DOMAINS)}")
    if seed.label is not None:
        return "critic"
    return {"safety": "harmful"}.get(seed.domain, seed.domain)


def parts_of(session: Session) -> dict[str, Any]:
    """All that changes results, by dotted name: what a rerun must share with the run it takes up."""
    config = asdict(session.config)
    del config["models"]  # of a model only its content counts, not its place or engine
    prompts = Path(str(resources.files("prompts")))
    args = [value for seat in SEATS for value in getattr(session.config.roles, seat).args.values()]
    named = [entry for value in args for entry in (value if isinstance(value, list) else [value])]
    own = {str(entry) for entry in named if str(entry).endswith(".md")}
    evals = [*session.config.heldout.suites, *session.config.heldout.judges]
    files = {Path(name.partition(".py:")[0] + ".py" if ".py:" in name else name) for name in evals}
    return {
        "version": __version__,
        **{f"config.{key}": value for key, value in _flat(config) if not (is_secret(key) or _aside(key))},
        **{f"weights.{name}": digest for name, digest in session.digests.items()},
        **{f"code.roles.{seat}": source_digest(getattr(session.config.roles, seat).target) for seat in SEATS},
        **{f"seeds.{use}": _rows_digest(rows) for use, rows in session.seeds.items()},
        **{f"prompts.{path.relative_to(prompts)}": _digest(path) for path in sorted(prompts.rglob("*.md"))},
        **{f"prompts.{name}": _digest(Path(name)) for name in sorted(own) if Path(name).is_file()},
        **{f"heldout.{path}": _digest(path) for path in sorted(files) if path.is_file()},
    }


def _aside(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in WHERE_IT_RUNS)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{prefix}{key}", value


def _rows_digest(rows: Sequence[Seed]) -> str:
    return f"{len(rows)} rows, {stable_hash([asdict(row) for row in rows]):016x}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _counted(dropped: Sequence[Dropped]) -> dict[str, int]:
    """How many rows were left out, by use and by reason without its item."""
    counts = Counter(f"{row.use}: {row.reason.partition(' item-')[0]}" for row in dropped)
    return dict(sorted(counts.items()))


def _write_dropped(session: Session) -> None:
    """contamination.jsonl: every seed that was left out, by its id. Derived, so written anew each time."""
    with replacing(session.run.path("contamination.jsonl")) as beside:
        beside.write_text("".join(json.dumps(vars(row)) + "\n" for row in session.dropped), encoding="utf-8")


def write_ledger(session: Session) -> None:
    """Which human label is used for what, and which iterations' critics were fitted on it.

    Derived from config, seeds and iterations, so written anew each time.
    """
    fitted: dict[str, list[int]] = {}
    labels = {seed.id: seed for seed in (*session.seeds["critic"], *read_labels(labels_path(session.run)))}
    for path in sorted(session.run.root.glob("iterations/*/critic/labels.jsonl")):
        for seed in read_jsonl(path, Seed):  # one that was taken back later was used all the same
            labels.setdefault(seed.id, seed)
            fitted.setdefault(seed.id, []).append(int(path.parent.parent.name))
    uses = {"critic.fit": list(labels.values())}
    if session.seeds["critic"] or session.config.heldout.suites:
        uses["critic.validate"] = load_partition().seeds["validation"]
    if session.config.heldout.suites:
        uses["judge.fit"] = load_partition().seeds["judge"]
    entries = [
        {
            "seed_id": seed.id,
            "use": use,
            "label": seed.label,
            "source": seed.source,
            "iterations": fitted.get(seed.id, []) if use == "critic.fit" else [],
        }
        for use, seeds in uses.items()
        for seed in seeds
    ]
    with replacing(session.run.path("ledger.jsonl")) as beside:
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        beside.write_text("".join(lines), encoding="utf-8")
