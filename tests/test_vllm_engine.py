"""The vLLM engine where there is no vLLM: what is refused without it. The rest is in tests/serving."""

import sys
from pathlib import Path

import pytest

from loop.config import load_config
from loop.engines.vllm import VLLMEngine
from loop.errors import AssetError, ConfigError
from loop.session import prepare


def test_a_missing_vllm_is_one_line_with_the_command_that_brings_it(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"models\.tiny\.engine: .*make serve-env"):
        VLLMEngine(str(tiny_model_dir), model="tiny")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"config\.json is missing"):
        VLLMEngine(str(tmp_path))


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_a_critic_that_reads_hidden_states_is_refused_on_it_and_may_sit_elsewhere(
    engine: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "two.yaml").write_text(
        f"name: two\npolicy: smol\nmodels:\n"
        f'  smol: {{weights: "path:{tiny_model_dir}", engine: "@engine/transformers.yaml"}}\n'
        f'  fast: {{weights: "path:{tiny_model_dir}", engine: "@engine/{engine}.yaml"}}\n'
        "seeds: {harmful: 0, benign: 0, toxicity: 0, legal: 0, critic: 0}\n"
        "roles:\n  attacker: '@attacker/few_shot.yaml'\n  learner: '@learner/sampling.yaml'\n"
        "  critic: '@critic/probe.yaml'\n"
    )
    moved = ["policy=fast", "roles.critic.model=policy"]
    with pytest.raises(ConfigError, match=r"roles\.critic: needs hidden_states, which .* \(models\.fast\)"):
        prepare(load_config([str(tmp_path / "two.yaml"), *moved]))
    prepare(load_config([str(tmp_path / "two.yaml"), "policy=fast", "roles.critic.model=smol"]))
