"""Where the lines, marks and ticks of a page's charts lie: geometry alone, drawn as SVG by the templates."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 280, 168
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 24
_INSET = 12  # of a line with marks, which would lie on the labels of the scale
_STEPS = (1, 2, 5, 10)  # of a scale's ticks, times a power of ten
POINTS = 160  # of a line, at most: more than there are pixels to tell them apart


@dataclass(frozen=True)
class Value:
    """A figure at `x`; `low` and `high` bound it, `hollow` marks one that came to nothing."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """A name, and the pixels of its points; marks are (x, y, y of low, y of high, hollow)."""

    name: str
    points: str
    marks: Sequence[tuple[float, float, float, float, bool]]


@dataclass(frozen=True)
class Chart:
    """A drawing of WIDTH × HEIGHT; ticks are (pixel, label), `description` says it in words."""

    title: str
    description: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def chart(
    title: str,
    description: str,
    series: Sequence[tuple[str, Sequence[Value]]],
    x_ticks: Sequence[tuple[float, str]],
    marked: bool = True,
    bounds: tuple[float, float] | None = None,
) -> Chart | None:
    """Lines over a shared scale, the first with marks; None where there is nothing to draw.

    `bounds` fixes the scale of y.
    """
    series = [(name, [value for value in values if isfinite(value.y)]) for name, values in series]
    everything = [value for _, values in series for value in values]
    if not everything:
        return None
    ends = [end for value in everything for end in (value.y, value.low, value.high) if end is not None]
    low, high = bounds or (min(ends), max(ends))
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(value.x for value in everything), max(value.x for value in everything)

    def across(x: float) -> float:
        place = 0.5 if last == first else (x - first) / (last - first)
        inset = _INSET if marked and bounds is None else 0
        return round(_LEFT + inset + place * (WIDTH - _LEFT - _RIGHT - 2 * inset), 1)

    def down(y: float) -> float:
        return round(HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    def line(name: str, values: Sequence[Value]) -> Line:
        marks = [
            (
                across(value.x),
                down(value.y),
                down(value.y if value.low is None else value.low),
                down(value.y if value.high is None else value.high),
                value.hollow,
            )
            for value in values
        ]
        points = " ".join(f"{x},{y}" for x, y, *_ in marks)
        return Line(name, points, marks if marked and name == series[0][0] else [])

    return Chart(
        title,
        description,
        [line(name, values) for name, values in series],
        [(across(x), label) for x, label in x_ticks if first <= x <= last],
        [(down(y), f"{y:.10g}") for y in ticks],
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold `low` and `high` between them."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10 ** floor(log10(rough))
    step = next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Strip:
    """A difference between 0 and STRIP pixels, with its interval; to the right of the middle is better."""

    value: float
    low: float
    high: float
    margin: float | None
    description: str


STRIP = 112


def strip(
    value: float | None, low: float | None, high: float | None, margin: float | None, higher: bool
) -> Strip | None:
    """On a scale of its own, with the loss that is allowed; None without an interval."""
    if value is None or low is None or high is None:
        return None
    reach = max(abs(low), abs(high), margin or 0.0) * 1.1 or 1.0

    def across(change: float) -> float:
        return round(STRIP / 2 * (1 + (change if higher else -change) / reach), 1)

    allowed = None if margin is None else round(STRIP / 2 * (1 - margin / reach), 1)
    told = "" if margin is None else f", may lose {margin:g}"
    better = "higher" if higher else "lower"
    description = f"{value:+.3f}, between {low:+.3f} and {high:+.3f}; {better} is better{told}"
    return Strip(across(value), across(low), across(high), allowed, description)


def thinned(values: Sequence[Value]) -> list[Value]:
    """At most POINTS values, each the mean of its neighbours."""
    if len(values) <= POINTS:
        return list(values)
    size = len(values) / POINTS
    groups = [values[int(at * size) : int((at + 1) * size)] for at in range(POINTS)]
    return [
        Value(sum(value.x for value in group) / len(group), sum(value.y for value in group) / len(group))
        for group in groups
    ]
