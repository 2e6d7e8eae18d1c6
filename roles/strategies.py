"""Strategies are data: how a goal is asked for stands in one Markdown file each, read and checked here."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from loop.errors import ConfigError
from loop.prompts import PromptFile, load_prompt
from roles.converters import CONVERTERS

FOLDER = "attacker/strategies"
_GIVEN = ("goal", "query")
_KEYS = frozenset(
    ("name", "role", "family", "turns", "needs", "converter", "opener", "rewrite", "weight", "source")
)


@dataclass(frozen=True)
class Strategy:
    """One way of asking: the user turns of `prompt`, and what is done beside them.

    `turns` counts the user turns; between them come the learner's answers. `converter` is applied to the
    query, `opener` put into the answer's mouth. With `rewrite`, a prompt, the attacker hears the learner's
    answer and the critic's critique of it and words the query anew. `weight` is its share of a draw.
    """

    name: str
    family: str
    prompt: PromptFile
    turns: int
    needs: tuple[str, ...]
    converter: str | None = None
    opener: str | None = None
    rewrite: str | None = None
    weight: float = 1.0
    source: str = ""

    @property
    def answers(self) -> int:
        """How many answers of the learner it hears before its query is ready."""
        return self.turns - 1 + (self.rewrite is not None)


def packaged() -> list[str]:
    """The names of the strategies that come with the project, in alphabetical order."""
    folder = Path(str(resources.files("prompts"))) / FOLDER
    return sorted(path.stem for path in folder.glob("*.md"))


def strategies(names: Sequence[str]) -> list[Strategy]:
    """The strategies of `names` in that order; all packaged ones where none is named."""
    return [load_strategy(name) for name in ([names] if isinstance(names, str) else names) or packaged()]


def load_strategy(name: str) -> Strategy:
    """Reads `name`, a packaged strategy (`role_play`) or a Markdown file of one's own, and checks it.

    Raises ConfigError that names the file and the key at fault.
    """
    own = Path(name).suffix == ".md" and Path(name).is_file()
    if not own and name not in packaged():
        raise ConfigError(
            f"strategy {name!r}: no such file, and none of that name is packaged; there are "
            f"{', '.join(packaged())}"
        )
    prompt = load_prompt(name if own else f"{FOLDER}/{name}")
    where, meta = f"strategy {name!r}", prompt.meta
    if unknown := sorted(map(str, set(meta) - _KEYS)):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; use {', '.join(sorted(_KEYS))}")
    if lacking := [key for key in ("name", "family", "turns", "needs") if meta.get(key) is None]:
        raise ConfigError(f"{where}: {lacking[0]} is missing; write it into the front matter")
    _check_turns(where, prompt)
    _check_values(where, prompt)
    strategy = Strategy(
        name=str(meta["name"]),
        family=str(meta["family"]),
        prompt=prompt,
        turns=meta["turns"],
        needs=tuple(meta["needs"]),
        converter=meta.get("converter"),
        opener=meta.get("opener"),
        rewrite=meta.get("rewrite"),
        weight=float(meta.get("weight", 1.0)),
        source=str(meta.get("source", "")),
    )
    try:
        trial = user_turns(strategy, "GOAL", "QUERY")
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error}; a turn may use {' and '.join(_GIVEN)}, named under needs"
        ) from None
    if trial == user_turns(strategy, "another", "thing"):
        raise ConfigError(
            f"{where}: its turns ask for nothing; put {{{{ query }}}} or {{{{ goal }}}} into one"
        )
    return strategy


def user_turns(strategy: Strategy, goal: str, query: str) -> list[str]:
    """The user turns that ask for `goal`, whose request in its form is `query`; both enter as data."""
    convert = CONVERTERS[strategy.converter] if strategy.converter else str
    given = {"goal": goal, "query": convert(query)}
    turns = strategy.prompt.render(**{name: given[name] for name in strategy.needs if name in given})
    return [turn["content"] for turn in turns]


def _check_turns(where: str, prompt: PromptFile) -> None:
    if others := [role for role, _ in prompt.turns if role != "user"]:
        raise ConfigError(
            f"{where}: has a section '## {others[0]}'; keep user turns only, the learner answers them"
        )
    if not prompt.turns:
        raise ConfigError(f"{where}: has no user turn; write a section '## user' with {{{{ query }}}} in it")
    if prompt.meta["turns"] != len(prompt.turns):
        raise ConfigError(
            f"{where}: turns is {prompt.meta['turns']!r}, but there are {len(prompt.turns)} sections "
            "'## user'; make them agree"
        )


def _check_values(where: str, prompt: PromptFile) -> None:
    meta = prompt.meta
    if not isinstance(meta["needs"], list):
        raise ConfigError(f"{where}: needs is {meta['needs']!r}; give a list, [query] or [goal, query]")
    if (converter := meta.get("converter")) is not None and converter not in CONVERTERS:
        raise ConfigError(f"{where}: converter {converter!r} is unknown; use {', '.join(CONVERTERS)}")
    weight = meta.get("weight", 1.0)
    if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ConfigError(f"{where}: weight is {weight!r}; give a number above 0")
    for key in ("opener", "rewrite"):
        if not isinstance(meta.get(key, "text"), str):
            raise ConfigError(f"{where}: {key} is {meta[key]!r}; give a text in quotes")
    if meta.get("rewrite"):
        load_prompt(meta["rewrite"])
        if meta["turns"] != 1:
            raise ConfigError(f"{where}: turns is {meta['turns']}; a strategy with rewrite has one turn")
