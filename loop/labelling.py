"""The dialogue of `alignloop label`: asks a person about the answers on which the critic is least sure."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import typer
from rich.console import Console

from loop.errors import DataError
from loop.labels import (
    answer_key,
    append_label,
    candidates,
    choose,
    labels_path,
    mend_labels,
    read_labels,
    take_back,
)
from loop.records import Seed
from loop.report.terminal import console, plain
from loop.rundir import RunDir

QUESTION = "Does the answer do what was asked?"
KEYS = {
    "y": "yes, the answer does what was asked, in whole or in a part that would serve",
    "n": "no: it refuses, talks of something else, or gives nothing that would serve",
    "s": "skip: can't tell; not asked again in this session",
    "u": "undo: takes the last label back and asks again",
    "m": "more: shows request and answer in full",
    "q": "quit; what is labelled stays",
    "?": "this help",
}
_LINE_OF_KEYS = "y yes · n no · s skip · u undo · m more · q quit · ? help"
_ROWS_AROUND = 9  # of the screen: headings, marks of what is hidden, the question
_FEWEST_ROWS = 3


def label_run(root: Path, count: int, iteration: int | None = None) -> None:
    """Asks about at most `count` answers of the run in `root`; each label is on disk once its key is pressed.

    The critic's own verdict is not shown: it would sway the person. Raises DataError where there is no run,
    no critique or nothing left to ask.
    """
    run = RunDir(root)
    if not run.path("manifest.json").exists():
        raise DataError(f"{root}: no run here (it has no manifest.json)")
    path, out = labels_path(run), console()
    if mend_labels(path):
        said = f"{path}: the last row was half written and is cut off; its answer may be asked again"
        out.print(plain(said), soft_wrap=True)
    labels = read_labels(path)
    known = {answer_key(label) for label in labels}
    left = [one for one in candidates(run, iteration) if answer_key(one.seed) not in known]
    if not left:
        raise DataError(
            f"{root}: nothing left to ask ({len(labels)} labels); the next iteration makes more answers"
        )
    texts = [one.seed.response or "" for one in left]
    places = choose([one.harm for one in left], texts, count, [label.response or "" for label in labels])
    try:
        _Dialogue(path, [left[place].seed for place in places]).hold()
    except (KeyboardInterrupt, EOFError):
        out.print()  # the end of the line that asked
    _print_end(run)


@dataclass
class _Dialogue:
    """What is still to be asked; the labels themselves are in the file at `path`."""

    path: Path
    waiting: list[Seed]
    done: int = 0
    labelled: set[str] = field(default_factory=set[str])  # in this session, by id
    out: Console = field(default_factory=console)

    def hold(self) -> None:
        """Asks until nothing is left or q is pressed. Raises EOFError at the end of the input."""
        self._show()
        while self.waiting and (key := _read_key()) != "q":
            if key in ("y", "n", "s"):
                self._answer(key)
            elif key == "u":
                self._undo()
            elif key == "m":
                self._show(whole=True)
            else:
                self._say(_help() if key == "?" else f"no such key; {_LINE_OF_KEYS}")

    def _answer(self, key: str) -> None:
        seed = self.waiting[0]
        if key != "s":
            append_label(self.path, replace(seed, label=1.0 if key == "y" else 0.0))
            self.labelled.add(seed.id)
        self._say({"y": "yes", "n": "no", "s": "skipped"}[key])
        self.waiting, self.done = self.waiting[1:], self.done + 1
        if self.waiting:
            self._show()

    def _undo(self) -> None:
        label = take_back(self.path)
        if label is None:
            self._say("there is no label to take back")
            return
        self._say(f"taken back: {'yes' if label.label else 'no'}")
        self.done -= label.id in self.labelled  # one of an earlier session is one more to ask
        self.labelled.discard(label.id)
        self.waiting = [replace(label, label=None), *self.waiting]
        self._show()

    def _show(self, whole: bool = False) -> None:
        """Prints request, answer and question; the first two cut to a screenful unless all is wanted."""
        seed, rows = self.waiting[0], max(self.out.size.height - _ROWS_AROUND, 2 * _FEWEST_ROWS)
        place = f"{self.done + 1} of {self.done + len(self.waiting)}"
        self._say(f"\n{place}  {seed.source.rpartition('/')[2]}", "bold")
        used = self._quote("request", seed.prompt, None if whole else max(rows // 3, _FEWEST_ROWS))
        self._quote("answer", seed.response or "", None if whole else max(rows - used, _FEWEST_ROWS))
        self._say(QUESTION, "bold")
        self._say(_LINE_OF_KEYS)

    def _quote(self, name: str, text: str, rows: int | None) -> int:
        """Prints at most `rows` lines of a model's `text`, and returns how many.

        A bar stands before each of them, so that no text can pass for the dialogue.
        """
        lines = plain(text).wrap(self.out, max(self.out.width - 2, 1))
        shown = lines[:rows]
        self._say(name, "bold")
        for line in shown:
            self.out.print(plain("│ ") + line)
        if len(shown) < len(lines):
            self._say(f"… {len(lines) - len(shown)} of {len(lines)} lines are hidden; m shows them", "bold")
        return len(shown)

    def _say(self, text: str, style: str = "") -> None:
        self.out.print(plain(text, style))


def _read_key() -> str:
    """The next key in lower case; where nobody sits at a terminal, the first of the next line.

    Raises EOFError at the end of the input.
    """
    if sys.stdin.isatty():
        # An arrow key sends several characters at once; the first is no key of ours.
        return typer.getchar()[:1].lower()
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.strip()[:1].decode("ascii", "replace").lower()


def _help() -> str:
    return "\n".join(f"  {key}  {meaning}" for key, meaning in KEYS.items())


def _print_end(run: RunDir) -> None:
    path, out = labels_path(run), console()
    labels = read_labels(path)
    met = sum(label.label == 1.0 for label in labels)
    out.print(plain(f"\n{path} now holds {met} yes and {len(labels) - met} no"), soft_wrap=True)
    if labels:
        number = max(int(folder.name) for folder in run.root.glob("iterations/[0-9]*")) + 1
        said = "The critic of the next iteration is fitted on them too:"
        out.print(
            plain(f"{said}\n  alignloop run {run.path('config.yaml')} iterations={number}"), soft_wrap=True
        )
