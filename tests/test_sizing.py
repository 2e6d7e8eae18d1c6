"""Memory and time on GPUs by arithmetic: the same as by hand, and as published where it is published."""

from pathlib import Path
from typing import Any

import pytest

from loop.config import Config, HardwareConfig, ModelConfig, as_object, load_config
from loop.errors import ConfigError
from loop.sizing import (
    OVERHEAD_GB,
    TRANSFORMERS_STEP_S,
    Shape,
    answering,
    architecture_of,
    reading_rate,
    room_for_tokens,
    shape_of,
    stage_seconds,
    step_seconds,
    training,
    training_rate,
)

H100 = HardwareConfig(gpus=1, memory_gb=80, tflops=989, bandwidth_gb_s=3350)
SEVEN = Shape(parameters=7_000_000_000, trained=40_000_000, layers=28, width=3584, kv_bytes=57_344)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("ALIGNLOOP_HEAD", "first")
    return as_object(load_config(["configs/gpu.yaml"]))


def test_the_architecture_in_the_packaged_config_has_the_published_parameters(gpu: Config) -> None:
    # Qwen's model card: 7.61B parameters; rank 16 on all linear layers trains 40,370,176.
    shape = shape_of(architecture_of("qwen", gpu.models["qwen"]), gpu.train.lora)
    assert shape.parameters == 7_615_616_512
    assert shape.trained == 40_370_176
    assert shape.kv_bytes == 2 * 28 * 4 * 128 * 2


def test_the_folder_of_a_model_says_what_it_is_made_of(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    entry = ModelConfig(weights=f"path:{tiny_model_dir}")
    shape = shape_of(architecture_of("tiny", entry), {"r": 4, "target_modules": "all-linear"})
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert shape.parameters == model.num_parameters()
    assert (shape.layers, shape.width, shape.kv_bytes) == (2, 64, 2 * 2 * 2 * 16 * 2)


def test_a_model_of_which_nothing_is_known_is_none_and_a_wrong_architecture_is_one_line() -> None:
    assert architecture_of("far", ModelConfig(weights="hf:nobody/nothing@main")) is None
    wrong = ModelConfig(weights="hf:nobody/nothing@main", architecture={"model_type": "qwen0"})
    with pytest.raises(ConfigError, match=r"models\.far: .*qwen0") as caught:
        architecture_of("far", wrong)
    assert "\n" not in str(caught.value)


def test_training_memory_is_weights_adapter_activations_and_an_allowance(gpu: Config) -> None:
    need = training(gpu, SEVEN)
    assert need.parts["weights"] == pytest.approx(14.0)
    assert need.parts["adapter"] == pytest.approx(0.64)
    # 2 sides x 4 pairs x 512 tokens x 28 layers x 34 x 3584 bytes
    assert need.parts["activations"] == pytest.approx(4096 * 28 * 34 * 3584 / 1e9)
    assert need.total == pytest.approx(sum(need.parts.values()))


def test_recomputing_keeps_less_and_takes_longer(gpu: Config) -> None:
    before = training(gpu, SEVEN).parts["activations"]
    gpu.train.dpo["activation_checkpointing"] = True
    assert training(gpu, SEVEN).parts["activations"] < before / 8
    assert training_rate(SEVEN, H100, recomputed=True) == pytest.approx(0.75 * training_rate(SEVEN, H100))


def test_sharded_training_holds_a_share_of_the_weights(gpu: Config) -> None:
    gpu.train.launcher, gpu.train.accelerate = "accelerate", {"distributed_type": "FSDP", "num_processes": 8}
    assert training(gpu, SEVEN).parts["weights"] == pytest.approx(14.0 / 8)
    gpu.train.accelerate["distributed_type"] = "MULTI_GPU"
    assert training(gpu, SEVEN).parts["weights"] == pytest.approx(14.0)


def test_vllm_takes_its_share_of_the_gpu_and_what_is_left_of_it_is_cache(gpu: Config) -> None:
    need = answering(gpu.models["qwen"], SEVEN, H100)
    assert need.total == pytest.approx(0.75 * 80)
    assert need.parts["cache"] == pytest.approx(60 - 14 - OVERHEAD_GB)
    assert room_for_tokens(need, SEVEN) == int(need.parts["cache"] * 1e9 / SEVEN.kv_bytes)
    assert answering(gpu.models["reader"], SEVEN, H100).total < 25


def test_a_step_is_bound_by_memory_with_few_sequences_and_by_arithmetic_with_many() -> None:
    few, many = (step_seconds(SEVEN, H100, n, 0) for n in (1, 4096))
    assert few == pytest.approx(14e9 / (3350e9 * H100.decoding))
    assert many == pytest.approx(2 * 7e9 * 4096 / (989e12 * H100.reading))
    assert step_seconds(SEVEN, H100, 1, 0, shards=2) == pytest.approx(few / 2)


def test_a_stage_reads_its_prompts_and_writes_its_tokens(gpu: Config) -> None:
    shapes = {"qwen": SEVEN}
    reading = stage_seconds(gpu, "qwen", shapes, "critique", 1000, 0)
    assert reading == pytest.approx(1000 * 256 / reading_rate(SEVEN, H100))
    both = stage_seconds(gpu, "qwen", shapes, "answer", 1000, 100_000)
    assert both == pytest.approx((reading or 0) + 100_000 / 256 * step_seconds(SEVEN, H100, 256, 356))
    assert stage_seconds(gpu, "reader", shapes, "attack", 10, 10) is None


def test_the_transformers_engine_takes_a_step_s_time_however_small_the_model(gpu: Config) -> None:
    small = {"reader": Shape(1_000_000, 1, 2, 64, 128)}
    gpu.models["reader"].engine.args["batch_tokens"] = 2560
    seconds = stage_seconds(gpu, "reader", small, "attack", 100, 100) or 0
    assert seconds == pytest.approx(100 / (2560 // 257) * TRANSFORMERS_STEP_S, rel=1e-2)


def test_servers_have_all_gpus_and_training_all_processes(gpu: Config) -> None:
    shapes = {"qwen": SEVEN}
    alone = {
        stage: stage_seconds(gpu, "qwen", shapes, stage, 1000, 50_000) or 0 for stage in ("answer", "train")
    }
    gpu.hardware.gpus = 16
    gpu.models["qwen"].engine.target = "loop.engines.openai.OpenAIEngine"
    gpu.train.launcher, gpu.train.accelerate = "accelerate", {"num_processes": 16}
    for stage, seconds in alone.items():
        assert stage_seconds(gpu, "qwen", shapes, stage, 1000, 50_000) == pytest.approx(seconds / 16)
