"""Curves as SVG that stretches to its place, with axes in HTML so that labels keep their size on a phone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from nemoalign.train.report.markup import Html, join, tag
from nemoalign.train.report.read import Curve

MOST_POINTS = 600
"""Of one curve; a picture is not wider than this."""

SMOOTH_FROM = 60
"""A curve of training with so many steps gets a running mean over a fiftieth of them."""

SIZE = 1000
"""Width and height of the picture in its own units."""

ROOM = 3.0
"""A peak this many times as high as nearly all of a curve runs out of the picture."""

FIRST = (
    "loss", "reward", "kl", "response_tokens", "finished", "clip_fraction", "entropy",
    "explained_variance",
)  # fmt: skip
LAST = ("lr", "grad_norm", "tokens_per_second", "memory_gib")
"""Metrics whose pictures come before those of all others, and after them."""

WIDE = ("loss", "reward")

Points = Sequence[tuple[int, float]]


def panel(title: str, splits: Mapping[str, Curve]) -> Html:
    """Return the picture of one metric: training as a line, the other splits as dots on a line."""
    order = sorted(splits, key=lambda split: (split != "train", split != "val"))
    found = {split: sorted(splits[split].items()) for split in order}
    finite = [(x, y) for points in found.values() for x, y in points if math.isfinite(y)]
    if not finite:
        return tag("figure", tag("figcaption", title, tag("p", "no finite value")))
    low, high = vertical_range(found)
    first, last = min(x for x, _ in finite), max(x for x, _ in finite)
    frame = _Frame(first, max(last, first + 1), low, high)
    lines: list[Html] = []
    for split, points in found.items():
        lines += _drawn(split, points, frame)
    shown = {split: thinned(points) for split, points in found.items()}
    grid = [tag("path", d=f"M0 {frame.y(v)}H{SIZE}", class_="grid") for v in ticks(low, high)]
    picture = tag(
        "svg", *grid, *lines, viewBox=f"0 0 {SIZE} {SIZE}", preserveAspectRatio="none", role="img"
    )
    return tag(
        "figure",
        tag("figcaption", tag("b", title), *_legend(found), tag("output", "")),
        tag("div", picture, *_labels(frame), tag("i", ""), class_="plot"),
        _embedded(shown, frame),
        class_="loss" if title in WIDE else "curve",
    )


def vertical_range(curves: Mapping[str, Points]) -> tuple[float, float]:
    """Return the lowest and highest value to draw: peaks far above the rest run out of the picture."""
    values = sorted(y for points in curves.values() for _, y in points if math.isfinite(y))
    low, high, most = values[0], values[-1], values[int(0.98 * (len(values) - 1))]
    if len(values) > SMOOTH_FROM and high - low > ROOM * (most - low) > 0:
        high = low + 1.25 * (most - low)
    if low == high:
        low, high = low - abs(low) * 0.1, high + (abs(high) * 0.1 or 1.0)
    return low, high


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Return at most ``most`` points: lowest and highest of each stretch, so that no peak is lost."""
    if len(points) <= most:
        return points
    kept = [points[0]]
    stretches = (most - 2) // 2
    for number in range(stretches):
        begin, end = (len(points) * n // stretches for n in (number, number + 1))
        stretch = points[begin:end]
        finite = [point for point in stretch if math.isfinite(point[1])] or stretch[:1]
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        kept += [point for point in sorted(ends) if kept[-1][0] < point[0] < points[-1][0]]
    return [*kept, points[-1]]


def smoothed(points: Points, width: int) -> Points:
    """Return the mean of the last ``width`` finite values at each of them."""
    made: list[tuple[int, float]] = []
    window: list[float] = []
    total = 0.0
    for x, y in points:
        if not math.isfinite(y):
            continue
        window.append(y)
        total += y - (window[-width - 1] if len(window) > width else 0.0)
        made.append((x, total / min(width, len(window))))
    return made


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``."""
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    begin = math.ceil(low / step - 1e-9)
    return [n * step for n in range(begin, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    def __init__(self, first: int, last: int, low: float, high: float) -> None:
        self.first, self.last, self.low, self.high = first, last, low, high

    def x(self, step: float) -> float:
        return round(SIZE * (step - self.first) / (self.last - self.first), 1)

    def y(self, value: float) -> float:
        return round(SIZE - SIZE * (value - self.low) / (self.high - self.low), 1)


def _drawn(split: str, points: Points, frame: _Frame) -> list[Html]:
    if split != "train":
        line = tag("path", d=_path(points, frame), class_=f"line {split}")
        dots = "".join(f"M{frame.x(x)} {frame.y(y)}h0" for x, y in points if math.isfinite(y))
        return [line, *([tag("path", d=dots, class_=f"dots {split}")] if len(points) < 80 else [])]
    if len(points) < SMOOTH_FROM:
        return [tag("path", d=_path(points, frame), class_="line train")]
    mean = smoothed(points, len(points) // 50 + 1)
    return [
        tag("path", d=_path(points, frame), class_="line train raw"),
        tag("path", d=_path(mean, frame), class_="line train"),
    ]


def _path(points: Points, frame: _Frame) -> str:
    """Return the line through points, with a gap where a value is not finite."""
    drawn: list[str] = []
    pen = "M"
    for x, y in thinned(points):
        if not math.isfinite(y):
            pen = "M"
            continue
        drawn.append(f"{pen}{frame.x(x)} {frame.y(y)}")
        pen = "L"
    return "".join(drawn) + ("h0" if len(drawn) == 1 else "")


def _legend(found: Mapping[str, Points]) -> list[Html]:
    return [tag("span", split, class_=f"key {split}") for split in found] if len(found) > 1 else []


def _labels(frame: _Frame) -> list[Html]:
    sides = [
        tag("span", f"{value:.4g}", class_="y", style=f"top:{frame.y(value) / 10}%")
        for value in ticks(frame.low, frame.high)
    ]
    steps = [value for value in ticks(frame.first, frame.last) if value == int(value)]
    below = [
        tag("span", f"{int(value):,}", class_="x", style=f"left:{frame.x(value) / 10}%")
        for value in steps
    ]
    return [*sides, *below]


def _embedded(shown: Mapping[str, Points], frame: _Frame) -> Html:
    """Return the numbers behind the picture, for the pointer."""
    series = {
        split: [[x, float(f"{y:.5g}") if math.isfinite(y) else None] for x, y in points]
        for split, points in shown.items()
    }
    text = json.dumps({"range": [frame.first, frame.last], "series": series}, separators=(",", ":"))
    # Inside a script element only this character could end it.
    safe = Html(text.replace("<", "\\u003c"))
    return tag("script", safe, type="application/json")


def panels(curves: Mapping[str, Mapping[str, Curve]]) -> Html:
    """Return a picture of every metric: the loss first, then how rollouts fare, then what else a run logs."""
    return join(panel(words(name), curves[name]) for name in sorted(curves, key=_place))


def words(name: str) -> str:
    """Return a metric's name as a person reads it."""
    return name.replace("_", " ").replace(" gib", " GiB")


def _place(name: str) -> tuple[int, int, str]:
    """Return what sorts metrics: how well it learns, what else an algorithm logs, what any run logs, times."""
    if name in FIRST:
        return 0, FIRST.index(name), name
    if name in LAST:
        return 2, LAST.index(name), name
    return 3 if name.startswith("seconds/") else 1, 0, name
