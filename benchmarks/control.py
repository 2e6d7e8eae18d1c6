"""The negative control: one iteration of the demo with a critic that learned shuffled labels, its gates off.

    python -m benchmarks.control [--seed 0] [--runs runs] [--sigmoid]

The critic's own seeds, their labels dealt anew, are written beside the run and given as `seeds.files`. With
the gates on such a critic ends the run before anything is trained (tests/slow/test_embedded_model.py); with
them off its preferences must not make the policy safer. Prints how far it agreed with people, the judge with
its pairs, and what changed on the held-out dev half.
"""

import argparse
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from loop.partition import draw, load_partition
from loop.records import write_jsonl
from loop.report.reading import critic_line, read_run
from loop.rundir import RunDir

LABELS = 64
SHOWN = ("safety.harmful_compliance", "overrefusal.refusal", "overrefusal.helpfulness")


def main() -> None:
    """Runs (or resumes) the control and prints its figures; ends with the run's exit code if that isn't 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the deal (default: 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run goes (default: runs)")
    parser.add_argument(
        "--sigmoid", action="store_true", help="DPO's loss alone, without SFT on the chosen answers"
    )
    options = parser.parse_args()
    run = RunDir(options.runs / f"control-{options.seed}{'-sigmoid' if options.sigmoid else ''}")
    seeds = draw(load_partition().seeds["critic"], LABELS, options.seed)
    labels = [seed.label for seed in seeds]
    random.Random(options.seed).shuffle(labels)
    options.runs.mkdir(parents=True, exist_ok=True)
    file = options.runs / f"control-{options.seed}.jsonl"
    write_jsonl(file, (replace(seed, label=label) for seed, label in zip(seeds, labels, strict=True)))
    command = [sys.executable, "-m", "loop.cli", "run", "configs/demo.yaml", f"name={run.root.name}"]
    command += [f"runs={options.runs}", f"seed={options.seed}", "iterations=1", "seeds.critic=0"]
    command += [f"seeds.files=[{file}]", "validity.auc=0", "pairs.min_agreement=0"]
    if options.sigmoid:
        command += ["train.dpo.loss_type=[sigmoid]", "train.dpo.loss_weights=[1.0]"]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    baseline, trained = read_run(run)
    print(critic_line(trained))
    for name in SHOWN:
        before, after = (one.value(*name.split(".")) for one in (baseline, trained))
        if before is not None and after is not None:
            print(f"{name}: {before.value:.3f} → {after.value:.3f}")
    for reason in trained.gate["reasons"]:
        print(f"  {reason}")


if __name__ == "__main__":
    main()
