"""Does asking about the answers that the critic is least sure of teach it faster than asking at random?

    python -m benchmarks.labelling                  # 10 draws, 16 labels and 8 more at a time up to 64
    python -m benchmarks.labelling --draws 20

Simulated on human labels: the pool is the critic's rows, the test is the validation rows, which train
nothing. Passive takes the next rows of `loop.partition.draw`, which gives each label its share, a help that
no one who labels at random has. Active takes what `loop.labels.choose` picks by the harms that the critic
fitted so far gives to the rest of the pool. Both begin with the same 16. Printed are the mean AUC over draws,
and the difference active - passive, paired by draw, with 95 % bootstrap intervals over draws: pool and test
rows are the same in each, so the intervals say nothing of other rows.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.critic import remembering
from loop.assets import model_dir
from loop.engines import Sampling
from loop.engines.transformers import TransformersEngine
from loop.heldout.statistics import Interval, mean_interval
from loop.interfaces import Context, bind
from loop.labels import choose
from loop.partition import draw, load_partition
from loop.records import Seed
from loop.validity import as_asked, measure_critic
from roles.critic import EnsembleCritic, SeedCritic

START, STEP, END = 16, 8, 64
SIZES = range(START, END + 1, STEP)
Grow = Callable[[list[Seed], SeedCritic, int], list[Seed]]


def main() -> None:
    """Prints a row for each number of labels, then the mean over all of them but the first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=10, help="draws of the first labels (default: 10)")
    draws = parser.parse_args().draws
    warnings.filterwarnings("ignore", category=FutureWarning)
    seeds = load_partition().seeds
    pool, rows = seeds["critic"], seeds["validation"]
    engine = TransformersEngine(str(model_dir("smollm2-135m-instruct")))
    ctx = remembering(bind(engine, Sampling(), None, key=(0, 0, "labelling"), system="", model="smol"))

    def passive(seed: int) -> Grow:
        return lambda labelled, critic, size: draw(pool, size, seed)

    def active(labelled: list[Seed], critic: SeedCritic, size: int) -> list[Seed]:
        known = {row.id for row in labelled}
        rest = [row for row in pool if row.id not in known]
        return labelled + asked(critic, labelled, rest, size - len(labelled), ctx)

    found = np.array(
        [
            [list(curve(draw(pool, START, seed), grow, rows, ctx)) for grow in (passive(seed), active)]
            for seed in range(draws)
        ]
    )
    print(f"pool {len(pool)} rows, test {len(rows)} rows, {draws} draws; AUC, mean [95 % over draws]")
    print(f"{'labels':<12}{'passive':>24}{'active':>24}{'active - passive':>28}")
    for place, size in enumerate(SIZES):
        _print(str(size), found[:, :, place])
    _print(f"{SIZES[1]} to {SIZES[-1]}", found[:, :, 1:].mean(axis=2))


def curve(labelled: list[Seed], grow: Grow, rows: Sequence[Seed], ctx: Context) -> Iterator[float]:
    """The AUC on `rows` of a critic fitted on `labelled`, then on what `grow` makes of them, size by size."""
    critic = EnsembleCritic(write_below=0.0)
    for size in SIZES:
        if size > START:
            labelled = grow(labelled, critic, size)
        critic = critic.fit(labelled, ctx)
        yield measure_critic(critic, rows, ctx)["auc"]


def asked(
    critic: SeedCritic, labelled: Sequence[Seed], rest: Sequence[Seed], count: int, ctx: Context
) -> list[Seed]:
    """The `count` rows of `rest` that the verb `label` would ask about; a null harm is not asked about."""
    attacks, completions = zip(*map(as_asked, rest), strict=True)
    harms = [critique.harm for critique in critic.critique(attacks, completions, ctx)]
    told = [(row, harm) for row, harm in zip(rest, harms, strict=True) if harm is not None]
    texts = [row.response or "" for row, _ in told]
    places = choose([harm for _, harm in told], texts, count, [row.response or "" for row in labelled])
    return [told[place][0] for place in places]


def _print(name: str, found: np.ndarray) -> None:
    """A row of the table for `found`, [draws, (passive, active)]."""
    passive, active = (_said(mean_interval(list(side))) for side in found.T)
    changes = found[:, 1] - found[:, 0]
    change = _said(mean_interval(list(changes)), "+") if changes.any() else "the same"
    print(f"{name:<12}{passive:>24}{active:>24}{change:>28}")


def _said(one: Interval, sign: str = "") -> str:
    ends = "" if one.low is None else f" [{one.low:{sign}.3f}, {one.high:{sign}.3f}]"
    return f"{one.value:{sign}.3f}{ends}"


if __name__ == "__main__":
    main()
