"""Prompts are data: Markdown with front matter, rendered in a sandbox because they meet model text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loop.errors import ConfigError
from loop.records import Attack, Message

_FRONT_MATTER = re.compile(r"\A---\n(?P<meta>.*?)\n---\n(?P<body>.*)\Z", re.DOTALL)
_TURN = re.compile(r"^## (system|user|assistant)[ \t]*\n", re.MULTILINE)

# Prompts are plain text for a model, not HTML: escaping would change what it reads. What keeps model text
# from being executed is that it only ever enters as a variable of a sandboxed, immutable environment.
_JINJA = ImmutableSandboxedEnvironment(autoescape=False, undefined=StrictUndefined)


@dataclass(frozen=True)
class PromptFile:
    """A prompt: its front matter and its chat turns (`## system`, `## user`, `## assistant`) as templates."""

    name: str
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    turns: tuple[tuple[str, str], ...] = ()

    def render(self, **variables: object) -> list[Message]:
        """The chat with `variables` filled in. Raises ConfigError for one that is needed and not given."""
        if lacking := sorted(set(self.meta.get("needs", ())) - set(variables)):
            raise ConfigError(
                f"prompt {self.name!r} needs {', '.join(lacking)}, which its role does not give"
            )
        return [
            Message(role=role, content=_render(text, f"prompt {self.name!r}", variables).strip())
            for role, text in self.turns
        ]


def fill(template: str, **variables: object) -> str:
    """Renders one line of template text (from a prompt's front matter) in the same sandbox."""
    return _render(template, f"template {template!r}", variables)


def _render(template: str, where: str, variables: Mapping[str, object]) -> str:
    try:
        return _JINJA.from_string(template).render(**variables)
    except TemplateError as error:
        raise ConfigError(f"{where}: {error}") from None


@cache
def load_prompt(name: str) -> PromptFile:
    """Reads `name`: a packaged prompt (`attacker/few_shot`) or a Markdown file of the user's own."""
    path = prompt_path(name)
    match = _FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    if match is None:
        raise ConfigError(f"prompt {path}: starts with no front matter (a block between two lines of ---)")
    try:
        meta = yaml.safe_load(match["meta"])
    except yaml.YAMLError as error:
        raise ConfigError(
            f"prompt {path}: front matter is no YAML ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(meta, dict | None):
        raise ConfigError(f"prompt {path}: front matter is no list of keys with values")
    pieces = _TURN.split(match["body"])
    turns = tuple(zip(pieces[1::2], (text.strip() for text in pieces[2::2]), strict=True))
    return PromptFile(name=name, meta=meta or {}, turns=turns)


def prompt_path(name: str) -> Path:
    """Where a prompt lies: a file as given, or among the packaged ones."""
    own = Path(name)
    if own.suffix == ".md" and own.is_file():
        return own
    packaged = Path(str(resources.files("prompts"))) / f"{name.removesuffix('.md')}.md"
    if not packaged.is_file():
        raise ConfigError(f"prompt {name!r}: no such file, and no packaged prompt of that name")
    return packaged


def conversation(system: str, turns: Sequence[Message], opener: str | None = None) -> list[Message]:
    """The chat that the policy sees in answering, in training and in evals: one form everywhere.

    A system turn is always given, since chat templates put in one of their own where none is.
    """
    opening = [Message(role="assistant", content=opener)] if opener else []
    return [Message(role="system", content=system), *turns, *opening]


def attack_conversation(system: str, attack: Attack) -> list[Message]:
    """The chat that `attack` makes of the policy's system prompt and its own turns."""
    return conversation(system, attack.turns, attack.opener)
