"""Which judges score an eval: those that come with it, fitted on labels of their own, or a person's own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import cast

from loop.assets import model_dir
from loop.config import JudgeConfig, ModelConfig, build, load_file, load_target
from loop.engines import Engine
from loop.errors import ConfigError
from loop.heldout.judges import (
    HumanLabelJudge,
    Judge,
    Judges,
    RefusalJudge,
    RefusalWording,
    toxicity_judge,
)
from loop.partition import load_partition


@cache
def human_label_judge() -> HumanLabelJudge:
    """The judge of `met`, fitted on the judge's share of the human labels."""
    return HumanLabelJudge.fit(load_partition().seeds["judge"])


@cache
def refusal_judge() -> RefusalJudge:
    """The judge of `refusal`, fitted on the human refusal labels."""
    return RefusalJudge.fit([row for row in load_partition().seeds["judge"] if "refusal" in row.source])


BUILT_IN: Mapping[str, Callable[[], Judge]] = {
    "human-labels": human_label_judge,
    "refusal-labels": refusal_judge,
    "refusal-wording": RefusalWording,
    "profanity-check": cache(toxicity_judge),
}
"""Judges by the name that `--judges` takes."""

USUAL: Mapping[str, str] = {
    "met": "human-labels",
    "refusal": "refusal-labels",
    "toxicity": "profanity-check",
}
"""Who decides where nobody else is named."""


@dataclass(frozen=True)
class JudgeModel:
    """What a judge that asks a model is handed: the folder of its weights, and its engine when it is used."""

    config: ModelConfig
    name: str

    @cached_property
    def path(self) -> Path:
        """Weights and tokenizer. Raises AssetError."""
        return model_dir(self.config.weights)

    @cached_property
    def engine(self) -> Engine:
        """Loaded when it is first asked."""
        return cast(Engine, build(self.config.engine, f"judge {self.name}", str(self.path), model=self.name))


def load_judges(names: Sequence[str], needed: Iterable[str]) -> Judges:
    """The judges that `names` (built in, or YAML files) give, by what they tell; the first of each decides.

    What is `needed` and told by none of them is told by the usual one. Raises ConfigError.
    """
    found: dict[str, list[Judge]] = {}
    for name in names:
        judge = _judge(name)
        found.setdefault(judge.tells, []).append(judge)
    for kind in sorted(set(needed) - set(found)):
        found[kind] = [_judge(USUAL[kind])]
    return found


def check_judges(names: Sequence[str], critic: str) -> None:
    """Refuses what can be refused without a model: an unknown judge, or one that is also the critic."""
    for name in names:
        if name in BUILT_IN:
            continue
        target = _config(name).target
        if target == critic or target.startswith("roles."):
            raise ConfigError(f"judge {name}: {target} is a role; a judge must not be the critic")
        load_target(target, f"judge {name}: target")


def _judge(name: str) -> Judge:
    if name in BUILT_IN:
        return BUILT_IN[name]()
    config = _config(name)
    model = {} if config.model is None else {"model": JudgeModel(config.model, Path(name).stem)}
    judge = build(config, f"judge {name}", **model)
    tells = getattr(judge, "tells", None)
    if tells not in USUAL or not callable(getattr(judge, "score", None)):
        raise ConfigError(
            f"judge {name}: {config.target} needs `score` and `tells` (one of {', '.join(USUAL)}), "
            f"and tells {tells!r}"
        )
    return cast(Judge, judge)


def _config(name: str) -> JudgeConfig:
    if not name.endswith((".yaml", ".yml")):
        near = get_close_matches(name, BUILT_IN, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BUILT_IN)}."
        raise ConfigError(f"no judge is called {name!r}; {hint} One of your own is a .yaml file")
    return load_file(name, JudgeConfig, "judge")
