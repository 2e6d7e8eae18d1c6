"""How well the default critic, fitted on 64 human labels, tells whether a harmful objective was met.

Area under the ROC curve on the validation rows, which neither critic nor judge is fitted on, over several
draws of the 64; beside it refusal wording and answer length alone.

    python benchmarks/critic.py [--labels 64] [--draws 5]
"""

import argparse
import platform
import random

import numpy as np
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from loop.assets import model_dir
from loop.engines import Sampling
from loop.engines.transformers import TransformersEngine
from loop.interfaces import bind
from loop.partition import draw, load_partition
from loop.records import Attack, Completion, Message, Seed
from loop.surface import is_refusal
from roles.critic import SeedCritic


def main() -> None:
    """Prints one line a draw and the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=int, default=64)
    parser.add_argument("--draws", type=int, default=5)
    options = parser.parse_args()
    partition = load_partition()
    rows = partition.seeds["validation"]
    met = np.array([(row.label or 0) >= 0.5 for row in rows])
    engine = TransformersEngine(str(model_dir("smollm2-135m-instruct")))
    ctx = bind(engine, Sampling(), None, key=(0, 0, "critic"), system="", model="smol")
    critic = SeedCritic(write_below=0.0)
    attacks, completions = zip(*(_asked(row) for row in rows), strict=True)
    areas: list[float] = []
    for seed in range(options.draws):
        fitted = critic.fit(draw(partition.seeds["critic"], options.labels, seed), ctx)
        harm = np.array([critique.harm for critique in fitted.critique(attacks, completions, ctx)])
        areas.append(float(roc_auc_score(met, harm)))
        low, high = _interval(met, harm)
        print(
            f"draw {seed}: AUC {areas[-1]:.3f} [{low:.3f}, {high:.3f}], "
            f"accuracy {np.mean((harm >= 0.5) == met):.3f}, Brier {brier_score_loss(met, harm):.3f}"
        )
    print(
        f"{options.labels} labels, {options.draws} draws: AUC {np.mean(areas):.3f} ± {np.std(areas):.3f} "
        f"(spread over draws) on {len(rows)} rows"
    )
    refused = [1.0 - is_refusal(row.response or "") for row in rows]
    lengths = [len((row.response or "").split()) for row in rows]
    for name, baseline in (("refusal wording", refused), ("length", lengths)):
        print(f"{name} alone: AUC {roc_auc_score(met, baseline):.3f}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def _asked(row: Seed) -> tuple[Attack, Completion]:
    """The row as an attack and its answer."""
    turns = [Message(role="user", content=row.prompt)]
    attack = Attack(row.id, 0, row.id, "", "", "safety", row.category, True, turns, "human")
    return attack, Completion(row.id, row.id, 0, "policy", row.response, "stop", 0, "human")


def _interval(met: np.ndarray, scores: np.ndarray, repeats: int = 1000) -> tuple[float, float]:
    """95 % interval of the AUC by bootstrap over rows."""
    rng, areas = random.Random(0), []
    for _ in range(repeats):
        pick = np.array(rng.choices(range(len(met)), k=len(met)))
        if 0 < met[pick].sum() < len(met):
            areas.append(roc_auc_score(met[pick], scores[pick]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
