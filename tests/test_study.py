"""The study: ablations share all that they don't touch, and a step that fails doesn't stop the others."""

import json
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablated_roles import ByOrigin, SamplesOnly, Uncritical
from benchmarks.ablations import (
    ABLATIONS,
    SHUFFLED,
    arguments,
    differences,
    overrides,
    own_seconds,
    reference_of,
    share,
    without_harmless,
)
from benchmarks.study import (
    Failed,
    Step,
    Study,
    called,
    carry_out,
    listed,
    seconds_by_step,
    selected,
    shown,
    steps,
)
from loop.config import as_object, build, load_config
from loop.errors import AlignloopError, DataError
from loop.interfaces import Context
from loop.records import (
    Attack,
    Completion,
    Critique,
    Domain,
    Message,
    Pair,
    Seed,
    Verdict,
    read_jsonl,
    write_jsonl,
)
from loop.rundir import RunDir, read_json, write_json

ROOT = Path(__file__).parents[1]
HELP, REFUSAL = "Sure, walk in on your toes and take it.", "I can't help with that, it isn't yours."
THREE: list[tuple[Domain, bool | None]] = [("safety", True), ("benign", False), ("safety", None)]
KINDS = THREE * 4


def attack(number: int, domain: Domain, harmful: bool | None, opener: str | None = None) -> Attack:
    turns = [Message(role="user", content=f"sneakily take the last biscuit of tin {number}")]
    return Attack(f"a{number}", 1, "s", "f", "plain", domain, "", harmful, turns, "m", opener=opener)


def completion(number: int, text: str | None, revised: bool = False) -> Completion:
    origin = "revision" if revised else "policy"
    return Completion(f"{origin}{number}", f"a{number}", 0, origin, text, "stop", 4, "m")


def critique(row: Completion) -> Critique:
    return Critique(f"k-{row.id}", row.id, "c", 0.5, 0.5, "p", "it takes what isn't its own")


def pair(number: int, domain: Domain, refuses: bool) -> Pair:
    chosen, rejected = (REFUSAL, HELP) if refuses else (HELP, REFUSAL)
    prompt = [Message(role="user", content="…")]
    return Pair(
        f"p{number}", 1, f"a{number}", domain, prompt, chosen, rejected, f"c{number}", f"r{number}", 0.5
    )


@pytest.fixture
def reference(tmp_path: Path) -> RunDir:
    """cpu-0 after its first iteration: 4 harmful attacks, 4 harmless and 4 unclear ones."""
    run = RunDir(tmp_path / "study" / "cpu-0")
    write_json(run.iteration(0) / "heldout" / "results.json", [])
    folder = run.iteration(1)
    attacks = [attack(number, *kind) for number, kind in enumerate(KINDS)]
    answers = [completion(number, HELP) for number in range(len(KINDS))]
    revisions = [completion(number, REFUSAL, revised=True) for number in range(len(KINDS))]
    labels = [Seed(f"seed{n}", "safety", "q", "made up", response="r", label=float(n % 2)) for n in range(40)]
    pairs = [
        pair(number, kind[0], kind[0] == "safety") for number, kind in enumerate(KINDS) if kind[1] is not None
    ]
    (folder / "critic").mkdir(parents=True)
    (folder / "critic" / "critic.json").write_text("{}")
    write_jsonl(folder / "critic" / "labels.jsonl", labels)
    for name, rows in {
        "attacks": attacks,
        "completions": answers,
        "critiques": map(critique, answers),
        "revisions": revisions,
        "revision_critiques": map(critique, revisions),
        "pairs": pairs,
    }.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    near = [{"what": what, "id": "x"} for what in ("attack", "pair")]
    (folder / "contamination.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in near))
    for name in ("attack_measures.json", "pair_audit.json"):
        write_json(folder / name, {"pairs": {"safety": 8}})
    write_json(folder / "gate.json", {"promoted": False})
    write_json(run.path("judges.json"), [])
    run.path("archive.jsonl").write_text("")
    run.path("config.yaml").write_text((ROOT / "configs" / "cpu.yaml").read_text())
    spent = [
        {"iteration": k, "stage": stage, "seconds": 60.0} for k in (0, 1) for stage in ("attack", "train")
    ]
    run.path("timings.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in spent))
    return run


def made(reference: RunDir, name: str) -> RunDir:
    run = RunDir(reference.root.parent / "ablations" / name)
    run.root.parent.mkdir(exist_ok=True)
    share(reference, run.root, ABLATIONS[name])
    return run


def study(reference: RunDir, test: bool = False) -> Study:
    config = as_object(load_config([str(ROOT / "configs" / "cpu.yaml")]))
    return Study(reference.root.parent, "configs/cpu.yaml", config, (0, 1), test)


# ---- sharing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, one in ABLATIONS.items() if one.after == 0])
def test_what_an_ablation_shares_is_the_same_byte_for_byte_and_nothing_else_is_there(
    reference: RunDir, name: str
) -> None:
    run, ablation = made(reference, name), ABLATIONS[name]
    folder = run.iteration(1)
    assert {path.name for path in folder.iterdir()} == set(ablation.keeps)
    assert (run.iteration(0) / "heldout" / "results.json").exists()
    changed = {"contamination.jsonl"}
    if ablation.prepare is without_harmless:
        changed |= {f"{name}.jsonl" for name in ("attacks", "completions", "critiques", "revisions")}
        changed.add("revision_critiques.jsonl")
    elif "flip" in name:
        changed |= {"pairs.jsonl", "pair_audit.json"}
    for file in (path for path in folder.rglob("*") if path.is_file() and path.name not in changed):
        assert file.read_bytes() == (reference.iteration(1) / file.relative_to(folder)).read_bytes()


def test_without_the_harmless_attacks_their_answers_and_critiques_are_gone_too(reference: RunDir) -> None:
    folder = made(reference, "no-benign").iteration(1)
    attacks = list(read_jsonl(folder / "attacks.jsonl", Attack))
    assert {row.harmful for row in attacks} == {True, None}
    for answers, critiques in (
        ("completions", "critiques"),
        ("revisions", "revision_critiques"),
    ):
        rows = list(read_jsonl(folder / f"{answers}.jsonl", Completion))
        assert [row.attack_id for row in rows] == [row.id for row in attacks]
        judged = read_jsonl(folder / f"{critiques}.jsonl", Critique)
        assert [row.completion_id for row in judged] == [row.id for row in rows]


def test_flips_exchange_that_share_of_the_pairs_and_fewer_are_a_part_of_more(reference: RunDir) -> None:
    before = {row.id: row for row in read_jsonl(reference.iteration(1) / "pairs.jsonl", Pair)}
    flipped: list[set[str]] = []
    for name in ("robust-flip-10", "robust-flip-20", "robust-flip-30", "flip-30"):
        folder = made(reference, name).iteration(1)
        after = {row.id: row for row in read_jsonl(folder / "pairs.jsonl", Pair)}
        assert list(after) == list(before)
        ids = {name for name, row in after.items() if row != before[name]}
        assert all(
            (after[name].chosen, after[name].rejected_id, after[name].margin)
            == (before[name].rejected, before[name].chosen_id, -before[name].margin)
            for name in ids
        )
        audit = read_json(folder / "pair_audit.json")
        assert (audit["flipped"], audit["pairs"]) == (len(ids), {"safety": 8})
        # By the judge all were right before.
        assert audit["agreement"]["all"]["value"] == 1 - len(ids) / len(before)
        flipped.append(ids)
    ten, twenty, thirty, other_thirty = flipped
    assert [len(ten), len(twenty), len(thirty)] == [1, 2, 2]
    assert ten < twenty <= thirty == other_thirty


def test_the_random_critic_gets_the_same_answers_with_their_labels_dealt_anew(reference: RunDir) -> None:
    run = made(reference, "random-critic")
    before = list(read_jsonl(reference.iteration(1) / "critic" / "labels.jsonl", Seed))
    dealt = list(read_jsonl(run.path(SHUFFLED), Seed))
    assert [row.id for row in dealt] == [row.id for row in before]
    assert sorted(row.label or 0 for row in dealt) == sorted(row.label or 0 for row in before)
    assert [row.label for row in dealt] != [row.label for row in before]
    over = overrides(reference, run.root, ABLATIONS["random-critic"])
    config = as_object(load_config([str(reference.path("config.yaml")), *over]))
    assert config.seeds.critic == 0
    assert config.seeds.files == [str(run.path(SHUFFLED))]


def test_a_further_iteration_takes_the_policy_before_it_as_promoted(reference: RunDir) -> None:
    run = made(reference, "fixed-attacker")
    assert read_json(run.iteration(1) / "gate.json")["promoted"] is True
    assert read_json(reference.iteration(1) / "gate.json")["promoted"] is False
    assert not list(run.iteration(2).iterdir())
    assert "iterations=3" in arguments(reference, run.root, ABLATIONS["fixed-attacker"])


def test_pairs_that_came_near_a_held_out_item_are_noted_only_where_the_pairs_are_shared(
    reference: RunDir,
) -> None:
    found = {
        name: [
            json.loads(line)["what"]
            for line in (made(reference, name).iteration(1) / "contamination.jsonl").read_text().splitlines()
        ]
        for name in ("sft", "labels-16")
    }
    assert found == {"sft": ["attack", "pair"], "labels-16": ["attack"]}


def test_time_that_was_taken_over_is_not_the_ablations_own(reference: RunDir) -> None:
    run = made(reference, "sft")
    assert own_seconds(run) == 180  # all of the baseline, and what the shared stages took
    assert own_seconds(run, reference) == 0
    with run.path("timings.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 1, "stage": "train", "seconds": 7.5}) + "\n")
    assert own_seconds(run, reference) == 7.5


def test_a_copy_that_was_killed_half_way_is_made_anew_and_a_whole_one_is_left(reference: RunDir) -> None:
    torn = reference.root.parent / "ablations" / "sft.tmp"
    torn.mkdir(parents=True)
    (torn / "torn").write_text("")
    run = made(reference, "sft")
    assert not run.path("torn").exists()
    assert not torn.exists()
    run.path("own").write_text("")
    made(reference, "sft")
    assert run.path("own").exists()


def test_a_file_that_is_to_be_shared_and_is_not_there_is_named(reference: RunDir) -> None:
    (reference.iteration(1) / "revisions.jsonl").unlink()
    with pytest.raises(DataError, match=r"revisions\.jsonl: not there"):
        made(reference, "sft")
    assert not (reference.root.parent / "ablations" / "sft").exists()


# ---- the ablations ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_a_config_whose_roles_can_be_built(reference: RunDir, name: str) -> None:
    root = reference.root.parent / "ablations" / name
    config = as_object(load_config(arguments(reference, root, ABLATIONS[name])))
    assert Path(config.runs) / config.name == root
    assert config.iterations == ABLATIONS[name].last
    for seat in ("attacker", "learner", "critic"):
        build(getattr(config.roles, seat), f"roles.{seat}")


def test_what_has_one_iteration_learns_faster_and_what_goes_on_as_the_recipe_does(
    reference: RunDir,
) -> None:
    recipe = as_object(load_config([str(reference.path("config.yaml"))])).train.dpo["learning_rate"]
    for name, ablation in ABLATIONS.items():
        root = reference.root.parent / "ablations" / name
        rate = as_object(load_config(arguments(reference, root, ablation))).train.dpo["learning_rate"]
        assert (rate > recipe) == (name != "one-big" and not ablation.after)


def test_one_big_iteration_has_as_many_attacks_and_steps_as_three(reference: RunDir) -> None:
    given = [str(reference.path("config.yaml"))]
    one, big = (
        as_object(load_config([*given, *more]))
        for more in ([], overrides(reference, Path("x"), ABLATIONS["one-big"]))
    )
    for domain in ("safety", "benign", "toxicity", "legal"):
        assert getattr(big.attacks, domain) == 3 * getattr(one.attacks, domain)
    assert big.train.dpo["max_steps"] == 3 * one.train.dpo["max_steps"]


def test_what_an_iteration_is_held_against_began_from_the_same_policy(reference: RunDir) -> None:
    runs = reference.root.parent / "ablations"
    further, big = ABLATIONS["fixed-attacker"], ABLATIONS["one-big"]
    assert reference_of(reference, runs, further) is None
    assert reference_of(reference, runs, big) == f"{reference.root}@3"  # it began from the base
    assert reference_of(reference, runs, ABLATIONS["sft"]) == f"{runs}/default@1"
    assert reference_of(reference, runs, ABLATIONS["default"]) is None
    write_json(reference.iteration(1) / "gate.json", {"promoted": True})
    assert reference_of(reference, runs, further) == f"{reference.root}@3"


def evaluated(folder: Path, complies: int, refuses: int, suites: Sequence[str]) -> str:
    """An eval of 40 items of each suite, the first few of which are complied with, or refused."""
    said = {"safety": ("harmful_compliance", complies, 1), "overrefusal": ("refusal", refuses, 0)}
    rows = [
        Verdict(name, f"i{n}", "dev", 0, "j", float(n < most), "q", "a", "m", metric, gold=gold)
        for name in suites
        for metric, most, gold in [said[name]]
        for n in range(40)
    ]
    terms = {"split": "dev", "max_tokens": 48, "samples": {}, "system": "", "definitions": {}}
    write_json(folder / "eval.json", {**terms, "suites": suites})
    write_jsonl(folder / "verdicts.jsonl", rows)
    write_json(folder / "results.json", [])
    return str(folder)


def test_a_difference_is_the_ablations_value_less_the_references_item_by_item(tmp_path: Path) -> None:
    before = evaluated(tmp_path / "before", 10, 0, ["safety", "overrefusal"])
    after = [
        evaluated(tmp_path / "one", 20, 0, ["safety"]),
        evaluated(tmp_path / "two", 0, 4, ["overrefusal"]),
    ]
    found = differences(before, after)
    assert list(found) == ["safety.harmful_compliance", "overrefusal.refusal"]
    harm, refusal = found.values()
    assert (harm["value"], harm["reference"], harm["difference"], harm["n"]) == (0.5, 0.25, 0.25, 40)
    assert 0 < harm["ci_low"] < 0.25 < harm["ci_high"]
    assert (refusal["difference"], refusal["better"]) == (pytest.approx(0.1), "lower")


@pytest.fixture
def ctx() -> Context:
    def none(*_: object, **__: object) -> Any:
        raise AssertionError("no model is asked")

    return Context(none, none, none, none, 1, "", "m")


def test_by_origin_the_opener_decides_whatever_is_said(ctx: Context) -> None:
    rows: list[tuple[Attack, Completion, float | None]] = [
        (attack(0, "safety", True), completion(0, HELP), 0),
        (attack(0, "safety", True), completion(0, REFUSAL), 0),  # the policy's own
        (attack(0, "safety", True), completion(0, "I can't help with eating less.", revised=True), 1),
        (attack(1, "safety", True, "Sure: "), completion(1, f"Sure: {REFUSAL}", revised=True), 1),
        (attack(2, "benign", False), completion(2, HELP), 1),
        (attack(2, "benign", False), completion(2, "Here is a letter.", revised=True), 1),
        (attack(2, "benign", False), completion(2, REFUSAL, revised=True), 0),
        (attack(3, "safety", None), completion(3, REFUSAL, revised=True), None),
        (attack(4, "toxicity", None), completion(4, HELP), 0),
        (attack(4, "toxicity", None), completion(4, HELP, revised=True), 1),
        (attack(5, "safety", True), completion(5, None), None),
    ]
    found = ByOrigin().critique([row[0] for row in rows], [row[1] for row in rows], ctx)
    assert [one.quality for one in found] == [row[2] for row in rows]
    assert all((one.quality is None) == (one.null_reason is not None) for one in found)


def test_without_its_critique_a_revision_is_asked_for_in_the_same_words_but_these(ctx: Context) -> None:
    asked, told = attack(0, "safety", True), critique(completion(0, HELP))
    texts: dict[type, list[str]] = {}

    def generate(chats: Sequence[Sequence[Message]]) -> Any:
        texts[kind] = [turn["content"] for chat in chats for turn in chat]
        return []

    for kind in (ByOrigin, Uncritical):
        talk = replace(ctx, generate=generate, rng=lambda *_: random.Random(0))
        with pytest.raises(ValueError, match="zip"):  # nothing was generated
            kind().revise([asked], [completion(0, HELP)], [told], talk)
    usual, without = texts[ByOrigin], texts[Uncritical]
    assert [text.removesuffix(f" {told.rationale}") for text in usual] == without
    assert told.rationale in usual[0]
    assert SamplesOnly().revise([asked], [completion(0, HELP)], [told], ctx) == []


# ---- the steps ----------------------------------------------------------------------------------


def test_the_steps_are_the_runs_the_ablations_and_what_is_made_of_them(reference: RunDir) -> None:
    names = [step.name for step in steps(study(reference))]
    of_two_seeds = [name for name in ABLATIONS if name != "fixed-attacker-seed-2"]
    ablations = [f"ablations/{name}" for name in (*of_two_seeds, "no-training")]
    assert names == ["cpu-0", "cpu-1", *ablations, "objections", "grid", "side", "tables"]


def test_an_ablation_of_another_seed_is_held_against_the_run_of_that_seed(reference: RunDir) -> None:
    step = next(step for step in steps(study(reference)) if step.name == "ablations/fixed-attacker-seed-1")
    with pytest.raises(AlignloopError, match="cpu-1 has not finished iteration 1"):
        step.do()


def test_the_test_half_is_opened_on_demand_alone(reference: RunDir) -> None:
    closed, opened = (steps(study(reference, test=test)) for test in (False, True))
    assert not [step for step in closed if "--split test" in step.told.get("command", "")]
    evals = [step.name for step in opened if step.name.startswith("evals/")]
    numbers = [f"evals/cpu-{seed}@{number}" for seed in (0, 1) for number in (1, 2, 3)]
    assert evals == ["evals/base", *numbers]


def test_objections_of_a_few_items_are_done_until_the_test_half_is_asked_for(reference: RunDir) -> None:
    path = reference.root.parent / "objections" / "objections.json"
    for split, expected in (("dev", {False: True, True: False}), ("test", {False: True, True: True})):
        write_json(path, {"request": {"split": split}})
        for test, done in expected.items():
            (step,) = selected(steps(study(reference, test=test)), ["objections"])
            assert step.done is done


def test_objections_are_told_which_strategies_were_trained_on(reference: RunDir) -> None:
    (step,) = selected(steps(study(reference)), ["objections"])
    assert "--limit 60" in step.told["command"]
    assert "--trained-on authority,base64,care" in step.told["command"]
    assert [f"cpu-0@{number}" in step.told["command"] for number in (1, 2, 3)] == [True] * 3


def test_tables_are_made_again_when_something_was_made_since(
    reference: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reference.root.parent)
    write_json(Path("side") / "side.json", {})
    (tables,) = selected(steps(study(reference)), ["tables"])
    assert not tables.done
    write_json(Path("docs") / "results" / "results.json", {})
    assert tables.done
    write_json(Path("side") / "side.json", {})
    assert not tables.done


def test_steps_are_named_by_themselves_or_by_their_folder(reference: RunDir) -> None:
    every = steps(study(reference))
    assert [step.name for step in selected(every, ["cpu-1", "ablations/sft"])] == ["cpu-1", "ablations/sft"]
    assert len(selected(every, ["ablations"])) == len(ABLATIONS)  # no-training, but not what is of seed 2
    assert selected(every, []) == every
    with pytest.raises(AlignloopError, match="--only evals: no such step"):
        selected(every, ["evals"])


def test_a_step_that_fails_is_one_line_and_the_others_go_on(
    reference: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    here = study(reference)
    final = here.runs / "good"
    done: list[str] = []

    def fail() -> None:
        raise DataError("no flour\nin the house")

    def bake() -> None:
        done.append("good")
        final.write_text("")

    every = [Step("bad", [here.runs / "bad"], fail), Step("good", [final], bake, {"command": "bake"})]
    assert carry_out(here, every, every) == ["bad"]
    assert "bad: failed: no flour in the house\n" in capsys.readouterr().out
    told = read_json(here.runs / "study.json")["steps"]
    assert list(told) == ["bad", "good"]
    assert (told["bad"]["failed"], told["good"]["failed"]) == ("no flour in the house", None)
    assert told["good"]["command"] == "bake"
    assert {"seconds", "machine", "alignloop", "git"} <= told["good"].keys()
    assert carry_out(here, every, every) == ["bad"]
    assert done == ["good"]


def test_a_command_leaves_its_words_in_a_log_and_its_time_whether_it_failed_or_not(
    reference: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = study(reference)
    (tmp_path / "loaf.py").write_text(
        "import sys\nprint('kneading', sys.argv[1])\nsys.exit(int(sys.argv[1]))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    called(here, "ablations/loaf", ["loaf", "0"])
    with pytest.raises(Failed, match=r"^kneading 5$") as failure:
        called(here, "ablations/loaf", ["loaf", "5"])
    assert failure.value.code == 5
    log = (here.runs / "logs" / "ablations-loaf.log").read_text().splitlines()
    assert log == ["$ python -m loaf 0", "kneading 0", "$ python -m loaf 5", "kneading 5"]
    rows = [json.loads(line) for line in (here.runs / "commands.jsonl").read_text().splitlines()]
    assert [row["exit_code"] for row in rows] == [0, 5]
    assert seconds_by_step(here) == {"ablations/loaf": sum(row["seconds"] for row in rows)}
    assert shown(["loop.cli", "eval", "x y"]) == "alignloop eval 'x y'"
    assert sys.executable not in "".join(log)


def test_a_study_that_is_told_to_end_tells_its_command_to_end(
    reference: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = study(reference)
    (tmp_path / "loaf.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: exit(print('out of the oven')))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with pytest.raises(SystemExit):
            called(here, "loaf", ["loaf"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (here.runs / "logs" / "loaf.log").read_text().splitlines()[-1] == "out of the oven"


def test_the_list_says_what_is_done_and_how_long_it_took(reference: RunDir) -> None:
    run = made(reference, "sft")
    with run.path("timings.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 1, "stage": "train", "seconds": 90.0}) + "\n")
    write_json(run.path("ablation.json"), {})
    every = steps(study(reference))
    lines = listed(study(reference), selected(every, ["cpu-0", "ablations/sft", "side"]))
    assert [line.split() for line in lines] == [
        ["to", "do", "4.0", "min", "cpu-0"],
        ["done", "1.5", "min", "ablations/sft"],
        ["to", "do", "–", "min", "side"],
    ]
