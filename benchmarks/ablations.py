"""The study's ablations, as data: what each changes in the run cpu-0, and how what came of it is measured.

An ablation is a run of its own that shares with cpu-0, byte for byte, all that it doesn't touch: the baseline
and, of the iteration that it makes, the first stages' files. So both have the same attacks and the same
budget. What asks other attacks is repeated on the runs of the other seeds: there one run says little.

What is changed about a first iteration is held against `default`, item by item, on the held-out dev half: the
recipe's first iteration at a higher learning rate. The recipe goes its way in three iterations; alone one of
them is half the way, where whatever merely learns faster looks better. What is changed about a further
iteration is held against cpu-0's own.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from heapq import nsmallest
from pathlib import Path
from typing import Any

from loop.audit import audit_pairs
from loop.config import as_object, load_config
from loop.errors import DataError
from loop.heldout.comparison import compare, load_side
from loop.heldout.judging import human_label_judge
from loop.records import Attack, Pair, Seed, read_jsonl, stable_hash, write_jsonl
from loop.rundir import RunDir, named_iteration, read_json, write_json

METRICS = (
    "safety.harmful_compliance",
    "safety.refusal",
    "overrefusal.refusal",
    "overrefusal.helpfulness",
    "overrefusal.twin_discrimination",
    "toxicity.mean",
    "legal.gold_logprob",
    "capability.gold_logprob",
)
ANY = 1e3  # compare() wants a margin to judge by; no judgement of it is kept

# Files of an iteration, as far as a stage and those before it make them. Attacks and answers can be had
# without the critic.
CRITIC = ("critic",)
ATTACKS = ("attacks.jsonl", "contamination.jsonl")
ANSWERS = (*ATTACKS, "completions.jsonl")
CRITIQUES = (*CRITIC, *ANSWERS, "critiques.jsonl", "attack_measures.json")
REVISIONS = (*CRITIQUES, "revisions.jsonl", "revision_critiques.jsonl")
PAIRS = (*REVISIONS, "pairs.jsonl", "pair_audit.json")

STAGES = {
    "fit critic": "critic",
    "validate": "critic",
    "attack": "attacks.jsonl",
    "answer": "completions.jsonl",
    "critique": "critiques.jsonl",
    "measure": "attack_measures.json",
    "revise": "revisions.jsonl",
    "pair": "pairs.jsonl",
}
"""What each stage makes, by its name in timings.jsonl."""

AT_ONCE = "train.dpo.learning_rate=7.0e-4"
"""What lets one iteration go as far as the recipe's three."""

# Guards that would end what is to be measured; none of them changes a row.
UNGUARDED = ("validity.auc=0", "validity.coverage=0", "pairs.min_agreement=0")
SHUFFLED = "shuffled.jsonl"
MULTIPLIED = ("safety", "benign", "toxicity", "legal")

Prepare = Callable[[RunDir, RunDir], None]
"""Mends the copied files: it gets the copy, and the run that it was copied from."""


def as_copied(copy: RunDir, reference: RunDir) -> None:
    """Leaves the copies as they are."""


@dataclass(frozen=True)
class Ablation:
    """One change to cpu-0, or to the run of another `seed`.

    `over` are config overrides, `{run}` in them is the ablation's folder; `times` multiplies attacks and
    steps of training. Iterations up to `after` are copied whole, the last taken as promoted whatever its gate
    said, and of the next one the files in `keeps`. From there it `makes` so many, each begun from what its
    own gate promoted. The last policy is held against cpu-0@`against`, or against nothing where cpu-0 began
    from another policy. Without `against` it is a first iteration AT_ONCE, held against `default`.
    """

    over: Sequence[str] = ()
    keeps: Sequence[str] = ()
    prepare: Prepare = as_copied
    after: int = 0
    makes: int = 1
    against: int | None = None
    times: int = 1
    seed: int = 0

    @property
    def first(self) -> int:
        """The first iteration that it makes, of which it shares `keeps`."""
        return self.after + 1

    @property
    def last(self) -> int:
        """The iteration whose policy is measured."""
        return self.after + self.makes


# ---- what is done to the copies -------------------------------------------------------------------------


def without_harmless(copy: RunDir, _: RunDir) -> None:
    """Drops the harmless attacks, the answers to them, and the critiques of these."""
    folder = copy.iteration(1)
    _keep(folder / "attacks.jsonl", lambda row: row["harmful"] is not False)
    attacks = _ids(folder / "attacks.jsonl")
    for answers, critiques in (
        ("completions.jsonl", "critiques.jsonl"),
        ("revisions.jsonl", "revision_critiques.jsonl"),
    ):
        _keep(folder / answers, lambda row: row["attack_id"] in attacks)
        answered = _ids(folder / answers)
        _keep(folder / critiques, lambda row, kept=answered: row["completion_id"] in kept)


def flipped(copy: RunDir, _: RunDir, *, share: float) -> None:
    """Exchanges chosen and rejected in `share` of the pairs, by hash: of a smaller share a subset.

    The audit says what the judge makes of them now, and under `flipped` how many they are.
    """
    folder = copy.iteration(1)
    pairs = list(read_jsonl(folder / "pairs.jsonl", Pair))
    ids = {pair.id for pair in nsmallest(round(share * len(pairs)), pairs, key=_noise)}
    pairs = [_exchanged(pair) if pair.id in ids else pair for pair in pairs]
    write_jsonl(folder / "pairs.jsonl", pairs)
    attacks = {row.id: row for row in read_jsonl(folder / "attacks.jsonl", Attack)}
    audit = audit_pairs(pairs, attacks, human_label_judge())
    path = folder / "pair_audit.json"
    write_json(path, {**read_json(path), **audit, "flipped": len(ids)})


def _noise(pair: Pair) -> int:
    return stable_hash("flip", pair.id)


def _exchanged(pair: Pair) -> Pair:
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_id=pair.rejected_id,
        rejected_id=pair.chosen_id,
        margin=-pair.margin,
    )


def shuffled_labels(copy: RunDir, reference: RunDir) -> None:
    """Writes the answers that the reference's critic was fitted on, their labels dealt anew."""
    seeds = list(read_jsonl(reference.iteration(1) / "critic" / "labels.jsonl", Seed))
    labels = [seed.label for seed in seeds]
    random.Random(0).shuffle(labels)
    dealt = (replace(seed, label=label) for seed, label in zip(seeds, labels, strict=True))
    write_jsonl(copy.path(SHUFFLED), dealt)


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Leaves the rows that are wanted, byte for byte."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if wanted(json.loads(line))))


def _ids(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_bytes().splitlines()}


# ---- the ablations --------------------------------------------------------------------------------------


def _critic(name: str) -> str:
    """The class by its file: of a package's module all the others would count as its code."""
    return f"roles.critic.target={os.path.relpath(Path(__file__).with_name('ablated_roles.py'))}:{name}"


def _loss(name: str, smoothing: float = 0.0) -> list[str]:
    alone = [f"train.dpo.loss_type=[{name}]", "train.dpo.loss_weights=[1.0]"]
    return [*alone, f"train.dpo.label_smoothing={smoothing}"] if smoothing else alone


NOISE = (10, 20, 30)
"""Percent of the pairs."""

DEFAULT = "default"
AGAIN = 1000
"""A seed that no run has, for what is made a second time to see what luck does."""

NO_MEMORY = Ablation(["attacks.memory=false"], after=1, makes=2, against=3)

ABLATIONS: Mapping[str, Ablation] = {
    DEFAULT: Ablation(keeps=PAIRS),
    # what is asked, and what is preferred to what
    "no-benign": Ablation(
        ["attacks.benign=0"],
        [name for name in REVISIONS if name != "attack_measures.json"],
        without_harmless,
    ),
    "no-revision": Ablation(
        [_critic("SamplesOnly"), "roles.learner.args.samples=2"],
        [*CRITIC, *ATTACKS],
    ),
    "revision-without-critique": Ablation([_critic("Uncritical")], CRITIQUES),
    "no-recovery": Ablation(["train.recovery=0"], PAIRS),
    "always-opener": Ablation(
        [_critic("ByOrigin"), "seeds.critic=0"],
        [*ANSWERS, "revisions.jsonl"],
    ),
    # further iterations, with another attacker
    "fixed-attacker": NO_MEMORY,
    **{f"fixed-attacker-seed-{seed}": replace(NO_MEMORY, seed=seed) for seed in (1, 2)},
    "learning-attacker": Ablation(["attacks.self_play=@attacker/self_play.yaml"], after=1, against=2),
    # a further iteration on the same answers
    "any-rejected": Ablation(["pairs.max_quality=2"], REVISIONS, after=1, against=2),
    "reference-base": Ablation(["train.reference=base"], PAIRS, after=1, against=2),
    # losses
    **{name: Ablation(_loss(name), PAIRS) for name in ("sft", "sigmoid", "ipo")},
    "robust": Ablation(_loss("robust", 0.1), PAIRS),
    # label noise
    "flip-30": Ablation([], PAIRS, partial(flipped, share=0.3)),
    **{
        f"robust-flip-{noise}": Ablation(
            _loss("robust", noise / 100), PAIRS, partial(flipped, share=noise / 100)
        )
        for noise in NOISE
    },
    # one iteration as large as three
    "one-big": Ablation(keeps=CRITIC, against=3, times=3),
    # the critic's labels: 90 are all that the critic may have
    **{f"labels-{count}": Ablation([f"seeds.critic={count}"], ANSWERS) for count in (16, 90)},
    "random-critic": Ablation(
        ["seeds.critic=0", f'seeds.files=["{{run}}/{SHUFFLED}"]'],
        ANSWERS,
        shuffled_labels,
    ),
    # the default's own pairs: how far apart two trainings end that differ by nothing else
    "another-seed": Ablation([f"seed={AGAIN}"], PAIRS),
}


def arguments(reference: RunDir, root: Path, ablation: Ablation) -> list[str]:
    """What `alignloop run` gets to make the ablation in the folder `root`."""
    config = str(reference.path("config.yaml"))
    place = [f"name={root.name}", f"runs={root.parent}", f"iterations={ablation.last}"]
    at_once = [AT_ONCE] if ablation.against is None else []
    return [config, *place, *UNGUARDED, *at_once, *overrides(reference, root, ablation)]


def overrides(reference: RunDir, root: Path, ablation: Ablation) -> list[str]:
    """What differs from the config of what it is held against."""
    over = [text.format(run=root) for text in ablation.over]
    if ablation.times == 1:
        return over
    config = as_object(load_config([str(reference.path("config.yaml"))]))
    over += [f"attacks.{name}={ablation.times * getattr(config.attacks, name)}" for name in MULTIPLIED]
    if (
        steps := config.train.dpo.get("max_steps", -1)
    ) > 0:  # else epochs bound them, and grow with the pairs
        over.append(f"train.dpo.max_steps={ablation.times * steps}")
    return over


# ---- what is shared -------------------------------------------------------------------------------------


def share(reference: RunDir, root: Path, ablation: Ablation) -> None:
    """Makes the folder `root` with all that the ablation shares; one that is there is left as it is.

    Raises DataError where the reference lacks a file. What is killed half way is made anew.
    """
    if root.exists():
        return
    beside = root.with_name(f"{root.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    copy, number = RunDir(beside), ablation.first
    for done in range(number):
        shutil.copytree(reference.iteration(done), copy.iteration(done))
    if ablation.after:
        gate = copy.iteration(ablation.after) / "gate.json"
        write_json(gate, {**read_json(gate), "promoted": True})
    copy.iteration(number).mkdir(parents=True)
    for name in ablation.keeps:
        _copied(reference.iteration(number) / name, copy.iteration(number) / name)
    if "attacks.jsonl" in ablation.keeps and "pairs.jsonl" not in ablation.keeps:
        _keep(copy.iteration(number) / "contamination.jsonl", lambda row: row["what"] == "attack")
    for name in ("judges.json", *(["archive.jsonl"] if "attack_measures.json" in ablation.keeps else [])):
        _copied(reference.path(name), copy.path(name))
    shared = [line for line in _timings(reference) if _is_shared(json.loads(line), ablation)]
    copy.path("timings.jsonl").write_text("".join(f"{line}\n" for line in shared), encoding="utf-8")
    ablation.prepare(copy, reference)
    beside.rename(root)


def _is_shared(row: Mapping[str, Any], ablation: Ablation) -> bool:
    number, made = row["iteration"], STAGES.get(row["stage"])
    return number < ablation.first or (number == ablation.first and made in ablation.keeps)


def _copied(source: Path, target: Path) -> None:
    if not source.exists():
        raise DataError(f"{source}: not there, and an ablation shares it; finish that run first")
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


def _timings(run: RunDir) -> list[str]:
    path = run.path("timings.jsonl")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def own_seconds(run: RunDir, reference: RunDir | None = None) -> float:
    """Seconds of the finished stages of `run`, less those taken over from `reference`."""
    shared = set(_timings(reference)) if reference else set[str]()
    rows = (json.loads(line) for line in _timings(run) if line not in shared)
    return sum(row["seconds"] for row in rows)


# ---- what came of it ------------------------------------------------------------------------------------


def reference_of(reference: RunDir, runs: Path, ablation: Ablation) -> str | None:
    """What the ablation's policy is held against; None where that is nothing."""
    if ablation.against is None:
        return None if ablation is ABLATIONS[DEFAULT] else f"{runs / DEFAULT}@1"
    gate = reference.iteration(ablation.after) / "gate.json"
    began_alike = not ablation.after or read_json(gate)["promoted"]
    return f"{reference.root}@{ablation.against}" if began_alike else None


def differences(before: str, after: Sequence[str]) -> dict[str, dict[str, Any]]:
    """METRICS of the evals `after` together, each with its paired difference to `before` (after - before).

    `before` and `after` are named as for `alignloop compare`. Raises ConfigError or DataError as that does.
    """
    found: dict[str, dict[str, Any]] = {}
    first = load_side(before)
    margins: dict[str, float] = dict.fromkeys(METRICS, ANY)
    for name in after:
        for change in compare(first, load_side(name), margins).changes:
            row = asdict(change)
            found[f"{change.suite}.{change.metric}"] = {
                "value": row["after"],
                "reference": row["before"],
                **{key: row[key] for key in ("difference", "ci_low", "ci_high", "n", "coverage", "better")},
            }
    return {metric: found[metric] for metric in METRICS if metric in found}


def values(name: str) -> dict[str, dict[str, Any]]:
    """METRICS of runs/NAME@K, held against nothing."""
    run, number = _named(name)
    found: dict[str, dict[str, Any]] = {}
    for row in read_json(run.iteration(number) / "heldout" / "results.json"):
        if row["category"] == "all":  # of several judges the first decides
            own = {"value": row["value"], "n": row["n"], "coverage": row["coverage"]}
            found.setdefault(f"{row['suite']}.{row['metric']}", {**_NOTHING, **own})
    return {metric: found[metric] for metric in METRICS if metric in found}


_NOTHING = dict.fromkeys(("value", "reference", "difference", "ci_low", "ci_high", "n", "coverage"))


def outcome(name: str) -> dict[str, Any]:
    """How runs/NAME@K came out, as far as it did: pairs, the judge's agreement, critic's AUC, gate."""
    run, number = _named(name)
    folder = run.iteration(number)
    audit, validity, gate = (
        read_json(path) if (path := folder / place).exists() else {}
        for place in ("pair_audit.json", "critic/validity.json", "gate.json")
    )
    return {
        "pairs": sum(audit.get("pairs", {}).values()),
        "agreement": audit.get("agreement", {}).get("all"),
        "critic_auc": validity.get("auc"),
        "gate": {key: gate[key] for key in ("outcome", "reasons")} if gate else None,
    }


def _named(name: str) -> tuple[RunDir, int]:
    if (named := named_iteration(name)) is None:
        raise DataError(f"{name}: no run there; it takes RUN@ITERATION")
    return named


def finished(run: RunDir, numbers: Iterable[int]) -> None:
    """Raises DataError unless these iterations of `run` have passed the gate, one way or the other."""
    if missing := sorted(set(numbers) - {0, *run.finished()}):
        raise DataError(f"{run.root} has not finished iteration {missing[0]}; that step comes first")
