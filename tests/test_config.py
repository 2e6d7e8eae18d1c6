"""The config: a typo is answered, `@file` replaces, secrets stay references, values agree with each other."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from loop.config import (
    SEATS,
    Config,
    Part,
    as_object,
    build,
    is_secret,
    load_config,
    load_target,
    source_digest,
)
from loop.errors import ConfigError
from loop.training_options import validate, validate_launch

SMALL = """
name: small
policy: m
models:
  m: {weights: "path:model"}
roles:
  attacker: {target: roles.attacker.FewShotAttacker, args: {shots: 3}}
  learner: {target: roles.learner.SamplingLearner}
  critic: {target: roles.critic.EnsembleCritic, model: m, args: {layer: 1}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def refusal(*arguments: object, resolve: bool = False) -> str:
    """The one line that these arguments are refused with."""
    with pytest.raises(ConfigError) as caught:
        config = load_config([str(argument) for argument in arguments])
        assert resolve, "the config was accepted"
        as_object(config)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_misspelt_key_of_a_file_is_answered_at_once_with_the_nearest(tmp_path: Path):
    path = tmp_path / "typos.yaml"
    path.write_text("itterations: 3\nroles: {critic: {modle: m}}\ntrain: {refrence: base}\n")
    line = refusal(path)
    assert "no key itterations, did you mean iterations?" in line
    assert "no key roles.critic.modle, did you mean roles.critic.model?" in line
    assert "no key train.refrence, did you mean train.reference?" in line


def test_misspelt_keys_of_files_and_overrides_are_answered_together(tmp_path: Path, small: Path):
    other = tmp_path / "other.yaml"
    other.write_text("chnk: 3\n")
    line = refusal(small, other, "attacks.safty=1", "attacks.benin=3")
    for nearest in ("chunk", "attacks.safety", "attacks.benign"):
        assert f"did you mean {nearest}?" in line


def test_a_key_like_no_other_is_answered_with_those_that_there_are(small: Path):
    assert "known here: safety, benign, toxicity, legal" in refusal(small, "attacks.zzzzzz=1")


def test_a_misspelt_key_inside_a_model_is_answered_too(small: Path):
    assert "did you mean models.m.engine.target?" in refusal(small, "models.m.engine.tagret=x")
    assert "did you mean models.new.weights?" in refusal(small, "models.new.wieghts=x")


def test_files_merge_left_to_right_and_overrides_come_last(tmp_path: Path, small: Path):
    second = tmp_path / "second.yaml"
    second.write_text("iterations: 4\nchunk: 7\n")
    config = as_object(load_config([str(small), str(second), "iterations=5"]))
    assert (config.name, config.chunk, config.iterations) == ("small", 7, 5)


def test_a_file_in_place_of_a_node_leaves_none_of_the_old_args(tmp_path: Path, small: Path):
    (tmp_path / "critic.yaml").write_text("target: roles.critic.EnsembleCritic\nargs: {examples: 1}\n")
    config = plain(load_config([str(small), "roles.critic=@critic.yaml"]))
    assert config["roles"]["critic"]["args"] == {"examples": 1}
    assert config["roles"]["critic"]["model"] == "policy"
    merged = plain(load_config([str(small), "roles.critic.args.examples=1"]))
    assert merged["roles"]["critic"]["args"] == {"layer": 1, "examples": 1}


def test_a_file_replaces_a_free_dict_and_an_engine_too(tmp_path: Path, small: Path):
    (tmp_path / "dpo.yaml").write_text("beta: 0.3\n")
    (tmp_path / "engine.yaml").write_text("target: my.Engine\nargs: {device: cpu}\n")
    first = [str(small), "train.dpo.epochs=1", "models.m.engine.args.old=1"]
    config = plain(load_config([*first, "train.dpo=@dpo.yaml", "models.m.engine=@engine.yaml"]))
    assert config["train"]["dpo"] == {"beta": 0.3}
    assert config["models"]["m"]["engine"] == {"target": "my.Engine", "args": {"device": "cpu"}}


def test_a_replacing_file_is_found_beside_the_config_then_among_the_packaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "mine"
    (folder / "critic").mkdir(parents=True)
    (folder / "critic" / "own.yaml").write_text("target: roles.critic.EnsembleCritic\nargs: '@args.yaml'\n")
    (folder / "critic" / "args.yaml").write_text("examples: 2\n")
    (folder / "c.yaml").write_text(
        SMALL.replace("{target: roles.learner.SamplingLearner}", "'@learner/sampling.yaml'")
    )
    monkeypatch.chdir(tmp_path)
    config = plain(load_config(["mine/c.yaml", "roles.critic=@critic/own.yaml"]))
    assert config["roles"]["learner"]["target"] == "roles.learner.SamplingLearner"
    assert config["roles"]["critic"]["args"] == {"examples": 2}


def test_a_packaged_config_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo.yaml", "configs/demo.yaml"):
        assert as_object(load_config([name])).name == "demo"


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path, small: Path):
    config = as_object(load_config([str(small), "train.dpo.learning_rate=9e-4"]))
    assert config.train.dpo["learning_rate"] == 9e-4, "a number, not the string that YAML 1.1 would read"
    small.write_text(SMALL + "train: {dpo: {learning_rate: 2e-5}}\n")
    assert as_object(load_config([str(small)])).train.dpo["learning_rate"] == 2e-5


def test_lists_and_dicts_can_be_given_on_the_command_line(small: Path):
    config = as_object(load_config([str(small), "heldout.suites=[safety]", "heldout.limit={safety: 3}"]))
    assert (config.heldout.suites, config.heldout.limit) == (["safety"], {"safety": 3})


def test_a_secret_behind_a_variable_stays_a_reference(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", "sk-hidden")
    config = load_config([str(small), "models.m.engine.args.api_key=${oc.env:MY_SECRET}", "system=${name}"])
    assert "sk-hidden" not in OmegaConf.to_yaml(config, resolve=False)
    assert "${oc.env:MY_SECRET}" in OmegaConf.to_yaml(config, resolve=False)
    assert as_object(config).models["m"].engine.args["api_key"] == "sk-hidden"
    assert as_object(config).system == "small"


def test_a_secret_that_is_written_out_is_refused_without_being_repeated(small: Path):
    line = refusal(small, "models.m.engine.args={api_key: sk-hidden}")
    assert line.startswith("models.m.engine.args.api_key:")
    assert "sk-hidden" not in line


@pytest.mark.parametrize("key", ["api_key", "a.hub_token", "db_password", "x.credentials", "token", "a.key"])
def test_names_of_secrets_are_known(key: str):
    assert is_secret(key)


@pytest.mark.parametrize("key", ["pad_token", "max_tokens", "critique_tokens", "api_key_env", "monkey"])
def test_other_names_are_no_secrets(key: str):
    assert not is_secret(key)


def test_a_variable_that_is_not_set_is_named(small: Path):
    assert "NO_SUCH_VARIABLE" in refusal(small, "system=${oc.env:NO_SUCH_VARIABLE}", resolve=True)


def test_everything_that_must_be_given_is_asked_for_at_once(tmp_path: Path):
    path = tmp_path / "bare.yaml"
    path.write_text("models: {m: {}}\n")
    line = refusal(path)
    for key in ("name", "policy", "models.m.weights", "roles.critic.target"):
        assert key in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("noequals", "an override is key=value"),
        ("=3", "dotted key"),
        ("a..b=1", "dotted key"),
        ("iterations=many", "iterations"),
        ("roles=3", "RolesConfig"),
        ("system=[x", "cannot be read as YAML"),
        ("system=${", "cannot be read as YAML"),
        ("roles.critic=@nowhere.yaml", "nowhere.yaml"),
        ("roles.critc=@critic/ensemble.yaml", "did you mean roles.critic?"),
    ],
)
def test_an_override_that_cannot_be_used_is_refused_in_one_line(small: Path, override: str, said: str):
    assert said in refusal(small, override)


def test_no_config_at_all_is_refused():
    assert "configs/demo.yaml" in refusal("iterations=1")


@pytest.mark.parametrize("content", ["a: [", "a: 1\na: 2\n", "- a\n- b\n"])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: str):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    assert refusal(path).startswith(str(path))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy=other", "policy: no model named 'other'"),
        ("roles.attacker.model=x", "roles.attacker.model: no model named 'x'"),
        ("heldout.split=test", "heldout.split: a run gates on dev only"),
        ("train.start_from=scratch", "train.start_from: 'scratch'"),
        ("train.reference=last", "train.reference: 'last'"),
        ("iterations=0", "iterations: must be at least 1"),
        ("chunk=0", "chunk: must be at least 1"),
        ("train.lora.modules_to_save=[lm_head]", "train.lora.modules_to_save"),
    ],
)
def test_values_that_contradict_each_other_are_refused(small: Path, override: str, said: str):
    assert said in refusal(small, override, resolve=True)


def test_the_learner_is_the_policy(small: Path):
    further = ["models.n.weights=path:n", "roles.learner.model=n"]
    assert "the learner is the policy" in refusal(small, *further, resolve=True)


def test_the_demo_config_holds():
    config = as_object(load_config(["configs/demo.yaml"]))
    assert isinstance(config, Config)
    rate = config.train.dpo["learning_rate"]
    assert isinstance(rate, float) and 0 < rate < 1, "a number, not the string that YAML 1.1 would read"


def test_a_role_is_found_in_a_file_of_ones_own(tmp_path: Path):
    file = tmp_path / "my_critic.py"
    file.write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Critic:\n    bar: float = 0.5\n"
    )
    made = build(Part(f"{file}:Critic", {"bar": 0.7}), "roles.critic")
    assert made.bar == 0.7
    before = source_digest(f"{file}:Critic")
    file.write_text(file.read_text() + "\n# changed\n")
    assert source_digest(f"{file}:Critic") != before


def test_the_digest_of_a_packaged_role_is_that_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A critic may be made of neighbouring files: where one of them changes, it is another critic."""
    package = tmp_path / "own_roles"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "critic.py").write_text("from own_roles.scorer import score\n\nclass Critic:\n    pass\n")
    (package / "scorer.py").write_text("score = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = source_digest("own_roles.critic.Critic")
    assert before == source_digest("own_roles.critic.Critic")
    (package / "scorer.py").write_text("score = 2\n")
    assert before != source_digest("own_roles.critic.Critic")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("json", "cannot import"),
        ("no.such.module.Thing", "cannot import"),
        ("roles.learner.Nobody", "names nothing"),
        ("nowhere.py:Critic", "no such file"),
    ],
)
def test_a_target_that_names_nothing_is_refused_with_its_key(target: str, said: str):
    with pytest.raises(ConfigError, match=rf"^roles\.critic\.target: .*{said}"):
        load_target(target, "roles.critic.target")


def test_a_target_that_cannot_be_called_is_refused():
    with pytest.raises(ConfigError, match="no class or function"):
        build(Part("loop.records.DOMAINS"), "roles.critic")


def test_a_file_that_is_no_python_is_refused(tmp_path: Path):
    (tmp_path / "role.py.txt").write_text("")
    with pytest.raises(ConfigError, match="cannot import"):
        load_target(f"{tmp_path / 'role.py.txt'}:Role", "roles.critic.target")


def test_an_argument_that_a_role_does_not_take_is_answered_with_those_that_it_takes():
    with pytest.raises(ConfigError, match=r"roles\.learner\.args: .*'sample'.*takes samples"):
        build(Part("roles.learner.SamplingLearner", {"sample": 3}), "roles.learner")


@pytest.mark.parametrize("name", ["demo.yaml", "gpu.yaml", "cluster.yaml"])
def test_every_packaged_run_config_fits_itself_and_the_libraries(name: str):
    config = as_object(load_config([name]))
    validate(config.train.dpo, config.train.lora)
    for seat in SEATS:
        build(getattr(config.roles, seat), f"roles.{seat}")
    for key, model in config.models.items():
        inspect.signature(load_target(model.engine.target, key)).bind(
            "folder", model=key, **model.engine.args
        )


@pytest.mark.parametrize("file", ["multi_gpu", "fsdp2", "multi_node"])
def test_every_packaged_file_for_accelerate_is_one_that_accelerate_takes(file: str, small: Path):
    key = f"train.accelerate=@accelerate/{file}.yaml"
    config = as_object(load_config([str(small), key, "train.dpo.gradient_accumulation_steps=16"]))
    validate_launch(config.train.accelerate)
    assert config.train.accelerate["num_processes"] >= 8


def test_a_wrong_key_for_accelerate_is_named_with_the_nearest():
    config = as_object(load_config(["gpu.yaml", "train.accelerate=@accelerate/multi_gpu.yaml"]))
    with pytest.raises(ConfigError, match=r"train\.accelerate\.num_procesess.*'num_processes'"):
        validate_launch({**config.train.accelerate, "num_procesess": 2})
    with pytest.raises(ConfigError, match=r"train\.accelerate\.distributed_type"):
        validate_launch({**config.train.accelerate, "distributed_type": "MANY_GPU"})
    with pytest.raises(ConfigError, match=r"train\.accelerate\.distributed_type: must be given"):
        validate_launch({"num_processes": 2})


def test_processes_that_cannot_share_a_step_are_refused(small: Path):
    launched = [small, "train.launcher=accelerate"]
    assert "train.accelerate.num_processes" in refusal(*launched, resolve=True)
    line = refusal(
        *launched, "train.accelerate.num_processes=3", "train.dpo.gradient_accumulation_steps=4", resolve=True
    )
    assert "4 micro-batches of a step cannot be shared by 3 processes" in line
    assert "'slurm' is none of local, accelerate" in refusal(small, "train.launcher=slurm", resolve=True)


def test_figures_of_a_gpu_must_be_there_to_count_with(small: Path):
    assert "hardware.memory_gb: must be above 0" in refusal(small, "hardware.gpus=1", resolve=True)
    as_object(load_config([str(small), "hardware=@hardware/a100.yaml"]))
