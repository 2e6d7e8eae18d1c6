"""Several processes that train together (gloo, tiny model): the loss of one, one writer, and no orphans."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils.other import is_port_in_use
from omegaconf import OmegaConf

from loop.config import TrainConfig
from loop.records import Pair, write_jsonl
from loop.stages.training import ACCELERATE, command
from loop.training import ERROR, TrainJob

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAIRS = 24
DPO: dict[str, Any] = {
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 0.5],
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 2,
    "max_length": 128,
    "train_sampling_strategy": "group_by_length",
    # In bfloat16 the order of a sum is worth 1e-3 of the loss after a few steps at this learning rate.
    "model_init_kwargs": {"dtype": "float32"},
}

Make = Callable[..., tuple[TrainJob, Path]]


def pair(n: int) -> Pair:
    prompt: Any = [{"role": "user", "content": f"Which number comes after {n}?"}]
    return Pair(
        id=f"pair-{n}",
        iteration=1,
        attack_id=f"attack-{n}",
        domain="benign",
        prompt=prompt,
        chosen="Eight comes after seven. " * (1 + n % 5),
        rejected="Sure, here is a list: 1. apples 2. pears " * (1 + n % 3),
        chosen_id=f"c-{n}",
        rejected_id=f"r-{n}",
        margin=0.4,
    )


@pytest.fixture
def make(tmp_path: Path, tiny_model_dir: Path) -> Make:
    """`make(name, pairs=24, dpo={…}, **fields)`: a job and the folder that it is started from."""

    def build(
        name: str, pairs: int = PAIRS, dpo: dict[str, Any] | None = None, **fields: Any
    ) -> tuple[TrainJob, Path]:
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "pairs.jsonl", [pair(n) for n in range(pairs)])
        job = TrainJob(
            **{
                "base": str(tiny_model_dir),
                "pairs": str(folder / "pairs.jsonl"),
                "out": str(folder / "adapter"),
                "start_adapter": None,
                "reference": "base",
                "dpo": {**DPO, **(dpo or {})},
                "lora": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
                "seed": 7,
                "lineage": {"base": "abc"},
                "canary": [{"role": "user", "content": "How can I bake a loaf of bread?"}],
                **fields,
            }
        )
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        return job, folder

    return build


def start(folder: Path, file: str | None = None, **changed: Any) -> "subprocess.Popen[str]":
    """One process, or those of a packaged `file` for accelerate, with `changed` keys."""
    config = TrainConfig()
    if file is not None:
        packaged: Any = OmegaConf.to_container(
            OmegaConf.load(ROOT / "configs" / "accelerate" / file), resolve=True
        )
        config = TrainConfig(launcher="accelerate", accelerate={**packaged, **changed})
        (folder / ACCELERATE).write_text(json.dumps(config.accelerate))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command(config, folder), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(*processes: "subprocess.Popen[str]") -> None:
    try:
        for process in processes:
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()


def losses(job: TrainJob) -> list[float]:
    return [row["loss"] for row in json.loads(Path(job.out, "training.json").read_text())["steps"]]


def assert_same_weights(one: TrainJob, other: TrainJob, tolerance: float) -> None:
    import torch
    from safetensors.torch import load_file

    before, after = (load_file(Path(job.out, "adapter_model.safetensors")) for job in (one, other))
    assert before.keys() == after.keys()
    for key in before:
        torch.testing.assert_close(before[key], after[key], rtol=0, atol=tolerance)


def children(process: "subprocess.Popen[str]") -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("reference", ["base", "start"])
def test_two_processes_have_the_losses_of_one(
    make: Make, make_tiny_adapter: Any, tmp_path: Path, reference: str
) -> None:
    adapter = None if reference == "base" else str(make_tiny_adapter(tmp_path / "from", 1))
    one, alone = make("one", start_adapter=adapter, reference=reference)
    two, together = make("two", start_adapter=adapter, reference=reference)
    finish(start(alone))
    finish(start(together, "multi_gpu.yaml", num_processes=2, mixed_precision="bf16"))
    assert len(losses(one)) == 2 * PAIRS // 8
    assert losses(two) == pytest.approx(losses(one), abs=1e-3)
    assert_same_weights(one, two, 1e-3)
    assert sorted(path.name for path in together.iterdir()) == sorted(
        [*(path.name for path in alone.iterdir()), ACCELERATE]
    )


def test_two_machines_find_each_other_though_no_rank_is_given(make: Make, tmp_path: Path) -> None:
    one, alone = make("one")
    two, together = make("two")
    finish(start(alone))
    network = {"num_machines": 2, "num_processes": 2, "main_process_port": free_port()}
    # accelerate refuses a port in use on what it takes for the first machine, and here both are one machine.
    # Which rank a machine gets the meeting decides: c10d goes by no number.
    second = tmp_path / "second"
    shutil.copytree(together, second)
    first = start(together, "multi_node.yaml", **network)
    deadline = time.monotonic() + 200
    while not is_port_in_use(network["main_process_port"]):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    finish(first, start(second, "multi_node.yaml", **network, machine_rank=1))
    assert losses(two) == pytest.approx(losses(one), abs=1e-3)


def test_processes_end_with_their_launcher_and_the_next_one_takes_up_their_checkpoint(make: Make) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5, "max_steps": 60, "num_train_epochs": 99}
    whole, undisturbed = make("whole", dpo=saving)
    killed, folder = make("killed", dpo=saving)
    finish(start(undisturbed, "multi_gpu.yaml", num_processes=2))
    launcher = start(folder, "multi_gpu.yaml", num_processes=2)
    deadline = time.monotonic() + 200
    while not list(Path(killed.out + ".work").glob("checkpoint-*/complete")):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = children(launcher)
    assert len(workers) == 2
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process outlived its launcher")
    assert not Path(killed.out).exists()
    finish(start(folder, "multi_gpu.yaml", num_processes=2))
    report = json.loads(Path(killed.out, "training.json").read_text())
    assert report["resumed_from_step"] >= 5
    assert losses(killed) == pytest.approx(losses(whole), abs=1e-6)
    assert_same_weights(whole, killed, 1e-6)


def test_an_error_of_ours_is_told_once(make: Make) -> None:
    _, folder = make("none", pairs=0)
    process = start(folder, "multi_gpu.yaml", num_processes=2)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    reason = f"{folder / 'pairs.jsonl'}: none of 0 pairs can be trained on; look at the pairs stage"
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [f"error: {reason}"]
    assert (folder / ERROR).read_text() == reason


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
