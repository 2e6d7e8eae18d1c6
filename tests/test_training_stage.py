"""The training stage: a command that a scheduler could run; where it runs is no part of what a run is."""

import sys
from pathlib import Path

from loop.config import TrainConfig, load_config
from loop.session import parts_of, prepare
from loop.stages.training import command

WORK = Path("runs/x/iterations/001/train")


def test_alone_a_training_is_a_module_and_a_folder() -> None:
    assert command(TrainConfig(), WORK) == [sys.executable, "-m", "loop.training", str(WORK)]


def test_a_launcher_goes_by_a_file_in_that_folder() -> None:
    config = TrainConfig(launcher="accelerate", accelerate={"num_processes": 2})
    launch = ["accelerate.commands.launch", "--config_file", str(WORK / "accelerate.json")]
    assert command(config, WORK) == [sys.executable, "-m", *launch, "-m", "loop.training", str(WORK)]


def test_a_prefix_comes_first_and_what_accelerate_overlooks_is_said_again() -> None:
    config = TrainConfig(
        launcher="accelerate",
        accelerate={"num_processes": 2, "rdzv_backend": "c10d"},
        launch_prefix=["srun", "--ntasks-per-node=1"],
    )
    line = command(config, WORK)
    assert line[:3] == ["srun", "--ntasks-per-node=1", sys.executable]
    assert line[line.index("--rdzv_backend") + 1] == "c10d"


def test_accelerate_still_overlooks_the_rendezvous_of_its_file(tmp_path: Path) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    file = tmp_path / "accelerate.json"
    file.write_text(
        '{"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "mixed_precision": "no",'
        ' "use_cpu": false, "debug": false, "num_processes": 2, "num_machines": 2, "rdzv_backend": "c10d"}'
    )
    args = launch_command_parser().parse_args(["--config_file", str(file), "x.py"])
    found, _, _ = _validate_launch_command(args)
    assert found.rdzv_backend == "static", "accelerate reads it now: take --rdzv_backend out of the command"


def test_a_run_may_go_on_with_another_launcher_and_other_gpus(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"""
name: x
policy: m
models: {{m: {{weights: "path:{tiny_model_dir}"}}}}
roles:
  attacker: {{target: roles.attacker.FewShotAttacker, model: m}}
  learner: {{target: roles.learner.SamplingLearner}}
  critic: {{target: roles.critic.ClassifierCritic, model: m}}
seeds: {{harmful: 0, benign: 0, toxicity: 0, legal: 0, critic: 0}}
train: {{dpo: {{gradient_accumulation_steps: 16}}}}
heldout: {{suites: [safety]}}
""")
    launched = ["train.launcher=accelerate", "train.accelerate=@accelerate/multi_node.yaml"]
    launched += ["train.launch_prefix=[srun]", "hardware=@hardware/h100.yaml"]
    before, after = (parts_of(prepare(load_config([str(path), *extra]))) for extra in ([], launched))
    assert before == after
    other = parts_of(prepare(load_config([str(path), "train.dpo.gradient_accumulation_steps=32"])))
    assert before != other
