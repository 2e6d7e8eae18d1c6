"""A session: checked before anything is loaded, the same for the same settings, its models shared."""

import json
from pathlib import Path
from typing import Any

import pytest

from loop.config import load_config
from loop.errors import AssetError, ConfigError, DataError, RunMismatch
from loop.interfaces import Usage
from loop.partition import load_partition
from loop.records import Seed, new_id, write_jsonl
from loop.rundir import write_json
from loop.session import Session, open_session, parts_of, prepare

ENGINE = """
from loop.engines.scripted import ScriptedEngine

class Fake(ScriptedEngine):
    def __init__(self, path, model, words="a fine answer"):
        super().__init__(lambda prompt, sample, seed: words, model=model)

class Deaf(Fake):
    capabilities = frozenset({"generate"})

    def __post_init__(self):
        pass

class Told(Fake):
    @property
    def capabilities(self):
        return frozenset({"generate"})
"""
CRITIC = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Critic:
    prompt: str = "critic/critique"

@dataclass(frozen=True)
class Listening(Critic):
    needs: ClassVar[frozenset[str]] = frozenset({"hidden_states", "logprobs"})
"""
SEEDS = [
    Seed(new_id("seed", "h"), "safety", "Open a stranger's door", "mine", harmful=True),
    Seed(new_id("seed", "b"), "benign", "Open your own door", "mine", harmful=False),
    Seed(new_id("seed", "t"), "toxicity", "The comment said", "mine"),
    Seed(new_id("seed", "l"), "legal", "Is it theft?", "mine", options=["yes", "no"], gold=0),
    Seed(new_id("seed", "c"), "safety", "Open it", "mine", response="No.", label=0.0),
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose run needs no download: own seeds, a scripted engine, weights of a few bytes."""
    monkeypatch.setenv("ALIGNLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    weights(tmp_path / "model")
    write_jsonl(tmp_path / "seeds.jsonl", SEEDS)
    (tmp_path / "engine.py").write_text(ENGINE)
    (tmp_path / "critic.py").write_text(CRITIC)
    path = tmp_path / "c.yaml"
    path.write_text(f"""
name: r
runs: {tmp_path / "runs"}
policy: m
models: {{m: {{weights: "path:{tmp_path / "model"}", engine: {{target: "{tmp_path / "engine.py"}:Fake"}}}}}}
roles:
  attacker: {{target: roles.attacker.FewShotAttacker, model: m}}
  learner: {{target: roles.learner.SamplingLearner}}
  critic: {{target: "{tmp_path / "critic.py"}:Critic", model: m}}
seeds: {{harmful: 0, benign: 0, toxicity: 0, legal: 0, critic: 0, files: [seeds.jsonl]}}
heldout: {{suites: [safety]}}
""")
    return path


def weights(folder: Path, value: float = 1.0) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file({"w": torch.tensor([value])}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def prepared(config: Path, *overrides: str) -> Session:
    return prepare(load_config([str(config), *overrides]))


def opened(config: Path, *overrides: str) -> Session:
    return open_session(load_config([str(config), *overrides]), ["alignloop", "run", *overrides])


def changed(config: Path, *overrides: str) -> set[str]:
    """Which parts differ from those of the plain config."""
    before, after = parts_of(prepared(config)), parts_of(prepared(config, *overrides))
    return {key for key in {*before, *after} if before.get(key) != after.get(key)}


def test_seeds_of_ones_own_go_where_their_domain_and_label_say(config: Path):
    seeds = prepared(config).seeds
    assert {use: [row.prompt for row in rows] for use, rows in seeds.items()} == {
        "harmful": ["Open a stranger's door"],
        "benign": ["Open your own door"],
        "toxicity": ["The comment said"],
        "legal": ["Is it theft?"],
        "critic": ["Open it"],
    }


def test_preparing_writes_nothing(config: Path, tmp_path: Path):
    prepared(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"id": "x", "domain": "cooking", "prompt": "p", "source": "s"}', "x has domain 'cooking'"),
        ('{"id": "x", "domain": "benign"', "row 1: not JSON"),
    ],
)
def test_a_bad_seed_is_named(config: Path, row: str, said: str):
    (config.parent / "seeds.jsonl").write_text(row + "\n")
    with pytest.raises((ConfigError, DataError), match=rf"seeds\.jsonl.*{said}"):
        prepared(config)


def test_a_seed_file_that_is_not_there_is_named(config: Path):
    with pytest.raises(ConfigError, match=r"seeds\.files: no such file 'none\.jsonl'"):
        prepared(config, "seeds.files=[none.jsonl]")


def test_a_suite_that_does_not_exist_is_named(config: Path):
    for override in ("heldout.suites=[safty]", "heldout.limit={safty: 3}", "heldout.samples={safty: 2}"):
        with pytest.raises(
            ConfigError, match=r"no suite (is called )?'safty'; (did you mean|there are).*safety"
        ):
            prepared(config, override)


def test_an_archive_that_nobody_remembers_is_refused(config: Path):
    with pytest.raises(ConfigError, match=r"attacks\.archive.*attacks\.memory"):
        prepared(config, "attacks.archive=archive.jsonl", "attacks.memory=false")


def test_training_options_are_checked_before_anything_is_loaded(config: Path):
    with pytest.raises(ConfigError, match=r"train\.dpo\.bta.*beta"):
        prepared(config, "train.dpo.bta=0.1")


def test_a_role_that_needs_what_its_engine_lacks_is_refused(config: Path):
    here = config.parent
    listening = f"roles.critic.target={here / 'critic.py'}:Listening"
    with pytest.raises(
        ConfigError, match=r"roles\.attacker: needs hidden_states, which .*Deaf \(models\.m\) lacks"
    ):
        prepared(config, f"models.m.engine.target={here / 'engine.py'}:Deaf")
    with pytest.raises(ConfigError, match=r"roles\.critic: needs hidden_states, logprobs"):
        prepared(
            config,
            listening,
            "models.d.weights=path:x",
            f"models.d.engine.target={here / 'engine.py'}:Deaf",
            "roles.critic.model=d",
        )


def test_an_engine_that_tells_what_it_can_do_only_when_it_is_there_is_let_through(config: Path):
    assert prepared(config, f"models.m.engine.target={config.parent / 'engine.py'}:Told")


def test_more_iterations_another_engine_name_or_place_are_no_other_run(config: Path):
    here = config.parent
    assert not changed(config, "iterations=9", "name=other", f"runs={here}")
    assert not changed(config, f"models.m.engine.target={here / 'engine.py'}:Told")
    assert not changed(config, "models.m.engine.args.words=else")
    weights(here / "elsewhere")
    assert not changed(config, f"models.m.weights=path:{here / 'elsewhere'}")


def test_what_changes_results_is_another_run(config: Path):
    here = config.parent
    assert changed(config, "seed=1") == {"config.seed"}
    assert changed(config, "train.dpo.beta=0.2") == {"config.train.dpo.beta"}
    assert changed(config, "roles.attacker.args.shots=2") == {"config.roles.attacker.args.shots"}
    weights(here / "elsewhere", 2.0)
    assert changed(config, f"models.m.weights=path:{here / 'elsewhere'}") == {"weights.m"}


def test_editing_a_role_a_prompt_or_a_seed_of_ones_own_makes_another_run(config: Path):
    here = config.parent
    own = here / "own.md"
    own.write_text("---\nname: own\n---\n")
    override = f"roles.critic.args.prompt={own}"
    before = parts_of(prepared(config, override))
    own.write_text("---\nname: edited\n---\n")
    (here / "critic.py").write_text(CRITIC + "\n")
    write_jsonl(here / "seeds.jsonl", SEEDS[:4])
    after = parts_of(prepared(config, override))
    keys = {key for key in before if before[key] != after[key]}
    assert keys == {f"prompts.{own}", "code.roles.critic", "seeds.critic"}


def test_no_secret_is_part_of_what_is_compared(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", "sk-hidden")
    (config.parent / "critic.py").write_text(CRITIC + '    api_key: str = ""\n')
    target = f"roles.critic.target={config.parent / 'critic.py'}:Listening"
    override = "roles.critic.args.api_key=${oc.env:MY_SECRET}"
    session = prepared(config, target, override)
    assert session.roles["critic"].api_key == "sk-hidden"
    assert "sk-hidden" not in json.dumps(parts_of(session))


def test_opening_writes_manifest_config_and_ledger_without_any_secret(
    config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_SECRET", "sk-hidden")
    session = opened(config, "models.m.engine.args.words=${oc.env:MY_SECRET}")
    assert "hidden" not in "".join(path.read_text() for path in session.run.root.iterdir())
    assert "${oc.env:MY_SECRET}" in session.run.path("config.yaml").read_text()
    ledger = [json.loads(line) for line in session.run.path("ledger.jsonl").read_text().splitlines()]
    assert ledger[0] == {
        "seed_id": SEEDS[4].id,
        "use": "critic.fit",
        "label": 0.0,
        "source": "mine",
        "iterations": [],
    }
    assert {row["use"] for row in ledger[1:]} == {"critic.validate", "judge.fit"}
    manifest = json.loads(session.run.path("manifest.json").read_text())
    assert manifest["lineage"]["models"] == session.digests


def test_opening_again_resumes_and_with_other_settings_is_refused(config: Path):
    opened(config)
    opened(config, "iterations=7")
    with pytest.raises(RunMismatch, match=r"config\.seed: 0 → 3"):
        opened(config, "seed=3")


def test_weights_that_are_not_there_are_named(config: Path):
    with pytest.raises(AssetError, match="nowhere"):
        parts_of(prepared(config, "models.m.weights=path:nowhere"))


# ---- policies, contexts, engines ----------------------------------------------------------------


def promote(session: Session, number: int, promoted: bool = True) -> None:
    folder = session.run.iteration(number)
    write_json(folder / "gate.json", {"promoted": promoted})
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes([number]))


def test_the_policy_before_an_iteration_is_the_one_last_promoted(config: Path):
    session = prepared(config)
    assert session.policy_before(1) == session.policy(0)
    assert session.policy(0).adapter is None
    promote(session, 1)
    promote(session, 2, promoted=False)
    promote(session, 3)
    assert [session.policy_before(number).number for number in (1, 2, 3, 4)] == [0, 1, 1, 3]
    names = {session.policy(number).name for number in range(4)}
    assert len(names) == 4
    assert all(name.startswith(f"m@{session.digests['m'][:12]}") for name in names)


def test_only_the_role_on_the_policy_gets_the_adapter(config: Path):
    session = prepared(config)
    promote(session, 1)
    policy, usage = session.policy(1), Usage()
    learner = session.context("learner", policy, 2, "answer 0", usage)
    critic = session.context("critic", policy, 2, "critique 0", usage)
    assert (learner.model, critic.model) == (policy.name, session.policy(0).name)
    assert learner.generate(["a"])[0][0].text == "a fine answer"
    assert (usage.calls, usage.tokens) == (1, 3)


def test_roles_that_name_one_model_share_it_until_it_is_closed(config: Path):
    engines = prepared(config).engines
    first = engines.get("m")
    assert engines.get("m") is first
    engines.close()
    assert engines.get("m") is not first


def test_the_weights_of_the_policy_are_where_the_config_says(config: Path):
    assert prepared(config).weights("m") == config.parent / "model"


def test_a_stage_leaves_a_line_with_rows_seconds_and_what_its_engines_did(config: Path):
    session = opened(config)
    with session.stage(1, "answer", 4) as meter:
        ctx: Any = session.context("learner", session.policy(0), 1, "answer 0", meter.usage)
        ctx.generate(["a", "b"])
        meter.advance(1)
        meter.advance(3)
        assert meter.elapsed() > 0
    (line,) = [json.loads(row) for row in session.run.path("timings.jsonl").read_text().splitlines()]
    assert (line["iteration"], line["stage"], line["rows"]) == (1, "answer", 4)
    assert (line["calls"], line["tokens"]) == (2, 6)
    assert 0 <= line["engine_seconds"] <= line["seconds"]
    assert line["peak_mib"] > 10
    assert "answer" in session.run.path("log.txt").read_text()


def test_the_gate_must_name_a_metric_that_is_measured(config: Path):
    for override, words in (
        (
            "gate.primary=safety.harmfulness",
            "no metric is called 'safety.harmfulness'; did you mean 'safety.harmful_compliance'",
        ),
        ("gate.primary=legal.accuracy", "legal.accuracy is not measured; add its suite"),
        ("gate.margins={safety.refusals: 0.1}", r"gate\.margins: no metric is called 'safety\.refusals'"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepared(config, override)


def test_a_judge_is_no_critic(config: Path):
    with pytest.raises(ConfigError, match="a judge must not be the critic"):
        prepared(config, "roles.critic.target=loop.heldout.judges.RefusalJudge")


def test_own_seeds_near_held_out_items_are_dropped_and_counted_and_judge_rows_refused(config: Path):
    partition = load_partition()
    item, judged = partition.items["overrefusal"][0], partition.seeds["judge"][0]
    near = Seed("near", "safety", item.prompt, "mine", harmful=True)
    write_jsonl(config.parent / "seeds.jsonl", [*SEEDS, near])
    session = prepared(config)
    assert near not in session.seeds["harmful"]
    (found,) = [row for row in session.dropped if row.id == "near"]
    assert found.use == "seeds.jsonl" and found.reason == f"near held-out {item.id}"
    write_jsonl(config.parent / "seeds.jsonl", [*SEEDS, judged])
    with pytest.raises(ConfigError, match=f"a judge is fitted on seed {judged.id}"):
        prepared(config)
