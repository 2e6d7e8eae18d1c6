"""What README and docs tell a reader to type is what the program takes, and their links lead somewhere."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from omegaconf import OmegaConf

from loop.cli import app
from loop.config import SEATS, as_object, build, load_config

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
READ = [page for page in PAGES if page.name != "CHANGELOG.md"]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
OURS = re.compile(r"^(?:alignloop|make|python -m benchmarks\.\w+|python benchmarks/\w+\.py)(?= |$)")
OPEN = ("…", "MODEL", "RUN", "ID", "CONFIG")
"""What stands for something of the reader's own: a command that has one is parsed, its files aren't read."""
NAMED = re.compile(r"^# ([\w./-]+\.(?:py|yaml|md))\b|^(?:\[?`([\w./-]+\.(?:py|yaml))`)", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command of a page; `whole` where it stands in a block of its own, to be typed as it is."""

    page: str
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        """The words after the comment is cut off."""
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {self.text[:60]}"


def commands() -> Iterator[Command]:
    """Every command of ours in a block, and every one in running text or a table."""
    for page in READ:
        text = page.read_text(encoding="utf-8")
        for _, language, body in FENCE.findall(text):
            for line in body.replace("\\\n", " ").splitlines() if language in ("", "sh") else ():
                plain = line.strip() if language == "sh" else line
                if OURS.match(found := plain.removeprefix(".venv/bin/")):
                    yield Command(page.name, found, True)
        for found in INLINE.findall(FENCE.sub("", text)):
            if OURS.match(found):
                yield Command(page.name, found, False)


COMMANDS = list(dict.fromkeys(commands()))
OF_THE_LINE = [command for command in COMMANDS if command.text.startswith("alignloop")]
CONFIGURED = [
    command
    for command in OF_THE_LINE
    if command.whole and command.words[1] in ("run", "config") and not set(OPEN) & set(command.words)
]
MADE = [command for command in COMMANDS if command.text.startswith("make")]
MEASURED = [command for command in COMMANDS if command.text.startswith("python")]


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of `words`, without running anything."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("alignloop", list(words))
    name, verb, rest = group.resolve_command(context, list(words))
    return verb.make_context(name, rest, parent=context).params


def test_the_pages_hold_commands_of_each_kind() -> None:
    assert len(OF_THE_LINE) > 20 and len(CONFIGURED) > 5 and len(MADE) > 1 and len(MEASURED) > 5


@pytest.mark.parametrize("command", OF_THE_LINE, ids=str)
def test_the_command_line_takes_every_command(command: Command) -> None:
    words = [word for word in command.words[1:] if word != "…"]
    if not words or words == ["--help"]:
        return
    try:
        assert parsed(words)
    except Exception as error:
        # In running text a verb may stand alone: `the same alignloop run goes on`.
        if command.whole or type(error).__name__ != "MissingParameter":
            raise


@pytest.mark.parametrize("wrong", ["nosuchverb", "run", "run demo.yaml --nope", "eval x --limit many"])
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|valid integer"):
        parsed(wrong.split())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it: our configs, a run of the demo, and every file that the pages show."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    demo = OmegaConf.to_yaml(load_config(["demo.yaml"]), resolve=False)
    (tmp_path / "runs" / "demo" / "config.yaml").write_text(demo, encoding="utf-8")
    for page in READ:
        for name, body in shown_files(page.read_text(encoding="utf-8")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(body, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown_files(text: str) -> Iterator[tuple[str, str]]:
    """The files of a page: a block that opens with `# name`, or one after a line that opens with its name."""
    for block in FENCE.finditer(text):
        before = text[: block.start()].rstrip().rsplit("\n\n", 1)[-1]
        for place in (block.group(3), before):
            if (found := NAMED.match(place)) and ".." not in found.group():
                yield found.group(1) or found.group(2), block.group(3)
                break


@pytest.mark.parametrize("command", CONFIGURED, ids=str)
def test_every_config_with_its_overrides_is_valid(
    command: Command, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in re.findall(r"\$\{oc\.env:(\w+)", command.text):
        monkeypatch.setenv(name, "set")
    config = as_object(load_config(parsed(command.words[1:])["arguments"]))
    assert config.name
    for seat in SEATS:
        role = getattr(config.roles, seat)
        if ".py:" in role.target:  # a class that a page shows
            assert build(role, f"roles.{seat}")


@pytest.mark.parametrize("command", MADE, ids=str)
def test_every_target_is_in_the_makefile(command: Command) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = [word for word in command.words[1:] if "=" not in word]
    assert set(asked) <= set(targets)


@pytest.mark.parametrize("command", MEASURED, ids=str)
def test_every_benchmark_is_there_and_has_the_options_named(command: Command) -> None:
    words = command.words
    script = words[2].removeprefix("benchmarks.") + ".py" if words[1] == "-m" else Path(words[1]).name
    path = ROOT / "benchmarks" / script
    assert path.is_file()
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options_of(path)


def options_of(path: Path) -> set[str]:
    """The options that a script names, read without importing what it measures."""
    found = (
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    )
    return {value for value in found if isinstance(value, str) and re.fullmatch(r"--[\w-]+", value)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_chinese_readme_has_the_commands_and_figures_of_the_english_one() -> None:
    ours, theirs = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))

    def typed(text: str) -> list[list[str]]:
        lines = [line for *_, body in FENCE.findall(text) for line in body.splitlines() if OURS.match(line)]
        return [shlex.split(line, comments=True) for line in lines]

    def figures(text: str) -> list[set[str]]:
        rows = [line for line in text.splitlines() if line.startswith("| ") and line.count(" | ") == 2]
        return [set(re.findall(r"\d(?:[\d.,]*\d)?", row)) for row in rows]

    assert typed(theirs) == typed(ours)
    assert figures(theirs) == figures(ours)


# --- error messages -------------------------------------------------------------------------------------

MESSAGES = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="session")
def said() -> list[str]:
    """Every string of the program, what it fills in left out."""
    return [
        "".join(getattr(part, "value", "…") if isinstance(part, ast.Constant) else "…" for part in parts)
        for path in sorted((ROOT / "loop").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for parts in [node.values if isinstance(node, ast.JoinedStr) else [node]]
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]


@pytest.mark.parametrize("message", MESSAGES)
def test_every_error_that_the_faq_explains_is_one_that_the_program_says(
    message: str, said: list[str]
) -> None:
    shape = ".*".join(re.escape(part) for part in message.split("…"))
    assert any(re.search(shape, text, re.DOTALL) for text in said)
