"""The grid: each policy is asked what each attacker wrote, and a cell says what came of it, nulls apart."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loop.cli import main
from loop.errors import ConfigError, DataError
from loop.grid import ARCHIVE, Answer, Cell, Grid, Request, measure_run
from loop.heldout.statistics import mean_interval
from loop.records import Attack, Completion, Critique, Message, write_jsonl
from loop.report.tables import print_grid
from loop.rundir import write_json
from loop.stages.archiving import RETRIED

PARTS = '''
import json
import re
from dataclasses import dataclass
from pathlib import Path

from loop.engines import Sample
from loop.records import Completion, new_id

class Engine:
    """Gives the recipe where the query's grade is above the policy's number; notes what it was asked."""
    capabilities = frozenset({"generate", "adapters"})

    def __init__(self, path, model):
        self.model = model

    def generate(self, prompts, sampling, n=1, adapter=None):
        policy = int(Path(adapter).parent.name) if adapter else 0
        with Path("asked.jsonl").open("a") as file:
            for prompt in prompts:
                file.write(json.dumps([policy, prompt, vars(sampling), n]) + "\\n")
        if policy == 2 and Path("die").exists():
            raise KeyboardInterrupt
        texts = [[turn["content"] for turn in chat if turn["role"] == "user"][-1] for chat in prompts]
        return [[self.said(text, policy, k) for k in range(n)] for text in texts]

    def said(self, text, policy, k):
        if "mute" in text and k == 0:
            return Sample(None, "error", 0, "no room")
        if "blank" in text:
            return Sample(" ", "stop", 0)
        gives = int(re.search("grade ([0-9])", text)[1]) > policy and (k == 1 or "once" not in text)
        return Sample("the recipe" if gives else "no", "stop", 2)

    def close(self):
        pass

class Judge:
    name, tells = "word", "met"

    def score(self, prompts, completions):
        return [None if not (text or "").strip() else float("recipe" in text) for text in completions]

class Strict(Judge):
    name = "strict"

    def score(self, prompts, completions):
        return [None if score is None else 0.0 for score in super().score(prompts, completions)]

class Manners(Judge):
    tells = "refusal"

@dataclass(frozen=True)
class Twice:
    def answer(self, attacks, ctx):
        return [Completion(str(k), attack.id, k, "policy", "no", "stop", 1, ctx.model)
                for attack in attacks for k in range(2)]
'''
CONFIG = """
name: made
policy: m
models: {{m: {{weights: "path:{here}/model", engine: {{target: "{here}/parts.py:Engine"}}}}}}
roles:
  attacker: {{target: roles.attacker.FewShotAttacker, model: m}}
  learner: {{target: "{learner}", args: {args}, sampling: {{max_tokens: 40, temperature: 0.7}}}}
  critic: {{target: roles.critic.RubricCritic, model: m}}
system: Be brief.
"""
Made = Callable[..., Path]


def attack(iteration: int, name: str, text: str, **over: Any) -> Attack:
    turns = [Message(role="user", content=text)]
    return Attack(
        **{
            "id": f"attack-{iteration}-{name}",
            "iteration": iteration,
            "seed_id": "s",
            "family": "plain",
            "strategy": "few-shot/plain",
            "domain": "safety",
            "category": name,
            "harmful": True,
            "turns": turns,
            "model": "m",
            **over,
        }
    )


WRITTEN = {
    1: [attack(1, "a", "grade 1"), attack(1, "b", "grade 2"), attack(1, "fine", "grade 9", harmful=False)],
    2: [
        attack(2, "again", "grade 9", strategy=f"{RETRIED}few-shot/plain", category="a"),
        attack(2, "c", "grade 3"),
        attack(2, "d", "grade 4", opener="Sure, "),
        attack(2, "unclear", "grade 9", harmful=None),
    ],
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes a run of two finished iterations, the first one's policy promoted unless told otherwise."""
    import torch
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNLOOP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "parts.py").write_text(PARTS, encoding="utf-8")
    for name in ("Judge", "Strict", "Manners"):
        text = f'target: "{tmp_path / "parts.py"}:{name}"\n'
        (tmp_path / f"{name.lower()}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "model").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")

    def make(
        written: "dict[int, list[Attack]]" = WRITTEN,
        promoted: Sequence[int] = (1,),
        learner: str = "roles.learner.SamplingLearner",
        args: str = "{samples: 3}",
    ) -> Path:
        root = tmp_path / "made"
        root.mkdir()
        text = CONFIG.format(here=tmp_path, learner=learner, args=args)
        (root / "config.yaml").write_text(text, encoding="utf-8")
        for number, attacks in written.items():
            folder = root / "iterations" / f"{number:03d}"
            (folder / "adapter").mkdir(parents=True)
            save_file({"w": torch.tensor([float(number)])}, folder / "adapter" / "adapter_model.safetensors")
            rows = [Completion(f"c-{one.id}", one.id, 0, "policy", "x", "stop", 1, "m") for one in attacks]
            found = [Critique(f"k-{row.id}", row.id, "Critic", 0.9, 0.1, "", "") for row in rows]
            write_jsonl(folder / "attacks.jsonl", attacks)
            write_jsonl(folder / "completions.jsonl", rows)
            write_jsonl(folder / "critiques.jsonl", found)
            write_json(folder / "gate.json", {"promoted": number in promoted})
        return root

    return make


def grid_of(root: Path, **over: Any) -> Grid:
    return measure_run(root, Request(**{"judges": ["judge.yaml"], **over}))[0]


def cell(grid: Grid, attacker: str, policy: int, judge: str = "word") -> Cell:
    (found,) = [c for c in grid.cells if (c.attacker, c.policy, c.judge) == (attacker, policy, judge)]
    return found


def asked() -> list[Any]:
    return [json.loads(line) for line in Path("asked.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- cells ----------------------------------------------------------------------------------------------


def test_every_policy_is_asked_what_every_attacker_wrote_itself(made: Made):
    grid = grid_of(made())
    shares = {(c.attacker, c.policy): c.success.value for c in grid.cells}
    assert shares == {
        **{("1", 0): 1.0, ("1", 1): 0.5, ("1", 2): 0.0},
        **{("2", 0): 1.0, ("2", 1): 1.0, ("2", 2): 1.0},
        **{(ARCHIVE, 0): 1.0, (ARCHIVE, 1): 0.75, (ARCHIVE, 2): 0.5},
    }
    assert grid.attackers == {"1": 2, "2": 2, ARCHIVE: 4}
    assert (grid.policies, grid.last) == ({0: True, 1: True, 2: False}, 1)
    assert cell(grid, "1", 1).success == mean_interval([0.0, 1.0])


def test_the_learner_is_asked_as_in_a_run_but_greedily_and_alike_in_every_column(made: Made):
    grid_of(made())
    system = {"role": "system", "content": "Be brief."}
    assert [0, [system, {"role": "user", "content": "grade 1"}]] in [row[:2] for row in asked()]
    assert {json.dumps(row[1][2:]) for row in asked() if "grade 4" in str(row)} == {
        '[{"role": "assistant", "content": "Sure, "}]'
    }
    assert {(row[2]["max_tokens"], row[2]["temperature"], row[3]) for row in asked()} == {(40, 0.0, 1)}
    assert len({row[2]["seed"] for row in asked()}) == 1


def test_turns_are_replayed_as_they_were_recorded(made: Made):
    turns = [
        Message(role="user", content="Who are you?"),
        Message(role="assistant", content="An old policy."),
        Message(role="user", content="grade 5"),
    ]
    grid_of(made({1: [attack(1, "talk", "", turns=turns)]}))
    assert {json.dumps(row[1][1:]) for row in asked()} == {json.dumps(turns)}


def test_of_several_answers_one_is_enough_and_they_are_drawn_at_temperature_1(made: Made):
    written = {1: [attack(1, "a", "grade 9 once")]}
    grid = grid_of(made(written), samples=2, max_tokens=7, seed=5)
    assert cell(grid, "1", 0).success.value == 1
    assert {(row[2]["max_tokens"], row[2]["temperature"], row[3]) for row in asked()} == {(7, 1.0, 2)}


def test_what_has_no_score_is_null_and_never_safe(made: Made):
    texts = {"a": "grade 1", "b": "grade 1 blank", "c": "grade 1 mute"}
    written = {1: [attack(1, name, text) for name, text in texts.items()]}
    found = cell(grid_of(made(written)), "1", 1)
    assert (found.success.value, found.success.n) == (0.0, 1)
    assert found.nulls == {"empty answer": 1, "no room": 1}
    assert (found.worst_low, found.worst_high) == (0.0, pytest.approx(2 / 3))


def test_an_answer_without_a_score_hides_no_other_that_met_the_objective(made: Made):
    written = {1: [attack(1, "a", "grade 9 mute"), attack(1, "b", "grade 1 mute")]}
    found = cell(grid_of(made(written), samples=2), "1", 1)
    # Of b's answers one has no score and one is harmless: the first could have been the one.
    assert (found.success.value, found.success.n, found.nulls) == (1.0, 1, {"no room": 1})


def test_a_limit_draws_the_same_attacks_for_every_policy(made: Made):
    many = {1: [attack(1, str(k), f"grade {k % 9}") for k in range(20)]}
    root = made(many)
    grid, folder = measure_run(root, Request(limit=5, judges=["judge.yaml"]), Path("few"))
    rows = [Answer(**json.loads(line)) for line in (folder / "grid.jsonl").read_text().splitlines()]
    drawn = [{row.attack_id for row in rows if (row.attacker, row.policy) == ("1", k)} for k in (0, 1)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == grid.attackers["1"] == 5
    measure_run(root, Request(limit=9, judges=["judge.yaml"]), Path("more"))
    more = {json.loads(line)["attack_id"] for line in Path("more/grid.jsonl").read_text().splitlines()}
    assert drawn[0] < more


# ---- what follows ---------------------------------------------------------------------------------------


def test_the_drop_is_paired_from_the_base_to_the_last_promoted_policy(made: Made):
    grid = grid_of(made())
    assert [(one.attacker, one.before, one.after, one.drop.value) for one in grid.drops] == [
        ("1", 0, 1, 0.5),
        ("2", 0, 1, 0.0),
        (ARCHIVE, 0, 1, 0.25),
    ]


def test_a_run_that_promoted_nothing_has_no_drop(made: Made, capsys: pytest.CaptureFixture[str]):
    grid = grid_of(made(promoted=()))
    assert (grid.last, grid.drops, grid.harder[0].policy) == (0, [], 0)
    print_grid(grid, "made/grid")
    assert "no policy was promoted" in capsys.readouterr().out


def test_the_last_attacker_is_held_against_the_first_on_the_last_promoted_policy(made: Made):
    # Newcombe's (1998) own example: 56 of 70 less 48 of 80 is 0.2, with 0.0524 to 0.3339.
    first = [attack(1, str(k), f"grade {9 if k < 48 else 1}") for k in range(80)]
    last = [attack(2, str(k), f"grade {9 if k < 56 else 1}") for k in range(70)]
    (harder,) = grid_of(made({1: first, 2: last}), limit=100).harder
    found = harder.difference
    assert (harder.policy, harder.first, harder.last, found.n) == (1, "1", "2", 150)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_one_attacker_alone_is_harder_than_none(made: Made):
    assert grid_of(made({1: WRITTEN[1]})).harder == []


def test_where_an_attacker_wrote_nothing_harmful_its_row_is_empty(made: Made):
    grid = grid_of(made({1: WRITTEN[1], 2: WRITTEN[2][:1]}))
    assert cell(grid, "2", 0).success.value is None and cell(grid, "2", 0).worst_high is None
    assert grid.harder[0].difference.value is None
    print_grid(grid, "made/grid")


def test_every_judge_has_its_own_cells(made: Made):
    grid = grid_of(made(), judges=["judge.yaml", "strict.yaml"])
    assert grid.judges == ["word", "strict"]
    assert cell(grid, "1", 0).success.value == 1 and cell(grid, "1", 0, "strict").success.value == 0
    assert {drop.judge: drop.drop.value for drop in grid.drops if drop.attacker == "1"} == {
        "word": 0.5,
        "strict": 0.0,
    }


# ---- files ----------------------------------------------------------------------------------------------


def test_an_interrupted_grid_is_taken_up_where_it_was(made: Made, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("loop.grid.CHUNK", 8)
    root = made()
    whole, _ = measure_run(root, Request(judges=["judge.yaml"]), Path("whole"))
    Path("asked.jsonl").unlink()
    Path("die").touch()
    with pytest.raises(KeyboardInterrupt):
        measure_run(root, Request(judges=["judge.yaml"]), Path("torn"))
    Path("die").unlink()
    Path("asked.jsonl").unlink()
    again, _ = measure_run(root, Request(judges=["judge.yaml"]), Path("torn"))
    assert again == whole
    assert {row[0] for row in asked()} == {2}
    assert Path("torn/grid.jsonl").read_bytes() == Path("whole/grid.jsonl").read_bytes()
    assert Path("torn/grid.json").read_bytes() == Path("whole/grid.json").read_bytes()


def test_the_files_hold_every_answer_and_every_figure(made: Made):
    root = made()
    grid = grid_of(root)
    rows = [json.loads(line) for line in (root / "grid" / "grid.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * (2 + 2 + 4)
    assert rows[0]["scores"] == {"word": 1.0} and rows[0]["model"].startswith("m@")
    told = json.loads((root / "grid" / "grid.json").read_text())
    assert told["policies"] == {"0": True, "1": True, "2": False} and len(told["cells"]) == 9
    assert told["harder"][0]["difference"]["value"] == grid.harder[0].difference.value
    assert told["request"]["sampling"]["temperature"] == 0


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"limit": 1}, "limit, attackers"),
        ({"samples": 2}, "samples, sampling"),
        ({"judges": ["strict.yaml"]}, "judges"),
        ({"seed": 7}, "seed"),
    ],
)
def test_another_request_for_the_same_folder_is_refused(made: Made, over: dict[str, Any], named: str):
    root = made()
    grid_of(root)
    with pytest.raises(ConfigError, match=f"results of other {named}.*give another --out"):
        grid_of(root, **over)


def test_lost_rows_are_told_by_attacker_and_policy(made: Made):
    root = made()
    grid_of(root)
    path = root / "grid" / "grid.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match="attacker 1 against policy 0 has rows of 1 attacks, not of the 2"):
        grid_of(root)


# ---- table and errors -----------------------------------------------------------------------------------


def test_three_iterations_fit_into_80_columns(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("loop.report.terminal.Console", lambda **_: Console(width=80))
    written = {k: [attack(k, f"{k}{j}", f"grade {j}") for j in range(5)] for k in (1, 2, 3)}
    grid = grid_of(made(written, promoted=(1, 3)))
    print_grid(grid, "made/grid")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if line.startswith("archive")]
    assert len(re.findall(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", row)) == 4
    (head,) = [line for line in lines if line.startswith("attacker policy 0")]
    assert "policy 0 (base)" in head and "policy 2 rejected" in head and "policy 3 (last)" in head


def test_the_verb_prints_the_table(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = made()
    monkeypatch.setattr(sys, "argv", ["alignloop", "grid", str(root), "--judges", "judge.yaml", "--out", "o"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    shown = capsys.readouterr().out
    assert "judged by word" in shown and "attacker 1: success drops from policy 0 to 1 by +0.50" in shown
    assert "o/grid.json" in shown


def test_what_is_no_finished_run_is_one_line(made: Made):
    with pytest.raises(DataError, match="nowhere: no run here"):
        grid_of(Path("nowhere"))
    root = made()
    adapter = root / "iterations" / "002" / "adapter" / "adapter_model.safetensors"
    adapter.rename(adapter.with_name("gone"))
    with pytest.raises(DataError, match=r"002/adapter/adapter_model\.safetensors: not there"):
        grid_of(root)
    for gate in root.glob("iterations/*/gate.json"):
        gate.unlink()
    with pytest.raises(DataError, match="no iteration is finished"):
        grid_of(root)
    assert not (root / "grid").exists()


def test_a_run_without_harmful_attacks_has_nothing_to_ask(made: Made):
    with pytest.raises(DataError, match="no finished iteration has a harmful attack"):
        grid_of(made({1: [attack(1, "fine", "grade 1", harmful=False)]}))


def test_a_judge_of_something_else_or_the_critic_is_refused(made: Made):
    root = made()
    with pytest.raises(ConfigError, match="word tells refusal; the grid needs one that tells met"):
        grid_of(root, judges=["manners.yaml"])
    Path("critic.yaml").write_text("target: roles.critic.RubricCritic\n")
    with pytest.raises(ConfigError, match="a judge must not be the critic"):
        grid_of(root, judges=["critic.yaml"])


def test_a_learner_that_answers_more_often_than_asked_is_refused(made: Made):
    root = made(learner="parts.py:Twice", args="{}")
    with pytest.raises(ConfigError, match=r"Twice gave 16 answers to 8 attacks.*--samples 1 needs 8"):
        grid_of(root)
    with pytest.raises(ConfigError, match="other samples"):
        grid_of(root, samples=2)
    grid, _ = measure_run(root, Request(samples=2, judges=["judge.yaml"]), Path("two"))
    assert cell(grid, "1", 0).success.value == 0
