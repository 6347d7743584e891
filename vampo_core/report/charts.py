"""Charts as SVG: axes with round ticks, and values that appear at the pointer."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 22, 38
_MOST_POINTS = 240


@dataclass(frozen=True)
class Series:
    """A line."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "vampo"
    """Classes in the style sheet: base, vampo or raw, or run and run0, run1, …"""
    dots: bool = False
    """Whether its points are marked."""
    short: str = ""
    """A shorter name, for the values at the pointer; the legend explains it. Empty for the name itself."""


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str = "", zero_line: bool = False
) -> Markup:
    """A figure of lines over one x axis, without values that are not finite; empty where there is nothing to draw."""
    series = [replace(s, points=_thinned(_finite(s.points))) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return Markup("")
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + ([0.0] if zero_line else [])
    axes = _Axes(_range(xs, 0.0), _range(ys, 0.06))
    parts = [axes.grid(x_label, y_label)]
    if zero_line:
        parts.append(f'<path class="zero" d="M{_LEFT} {axes.y(0):.1f}H{WIDTH - _RIGHT}"/>')
    for s in series:
        path = "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in s.points)
        parts.append(f'<path class="line {s.style}" d="M{path}"/>')
        if s.dots or len(s.points) == 1:
            parts += [
                f'<circle class="{s.style}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3"/>' for x, y in s.points
            ]
    parts.append(_hover_lines(series, axes, x_label))
    legend = "".join(
        f'<span class="key {s.style}">{escape(_in_legend(s))}</span>' for s in series if s.short or len(series) > 1
    )
    return _figure(title, legend, "".join(parts))


def bar_chart(values: Sequence[tuple[str, float]], *, title: str, x_label: str, higher_is_better: bool) -> Markup:
    """Finite values in order of size, around zero; green if better than zero. Empty where there is nothing to draw."""
    ordered = sorted(_finite(values), key=lambda item: item[1], reverse=higher_is_better)
    if not ordered:
        return Markup("")
    axes = _Axes((0.0, float(len(ordered))), _range([value for _, value in ordered] + [0.0], 0.06))
    parts = [axes.grid(x_label, "", x_ticks=False)]
    step = (WIDTH - _LEFT - _RIGHT) / len(ordered)
    for i, (name, value) in enumerate(ordered):
        style = "good" if value != 0 and (value > 0) == higher_is_better else "bad"
        top, bottom = sorted((axes.y(value), axes.y(0)))
        x = axes.x(i) + step * 0.1
        parts.append(
            f'<g class="hit"><rect class="area" x="{axes.x(i):.1f}" y="{_TOP}" width="{step:.2f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
            f'<rect class="bar {style}" x="{x:.1f}" y="{top:.1f}" width="{step * 0.8:.2f}" '
            f'height="{max(bottom - top, 0.5):.1f}"/>{_readout(f"{name}: {value:+.4g}")}</g>'
        )
    parts.append(f'<path class="zero" d="M{_LEFT} {axes.y(0):.1f}H{WIDTH - _RIGHT}"/>')
    return _figure(title, "", "".join(parts))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def moving_average(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Means over ``window`` neighbours, fewer at both ends; as many points as before."""
    half = window // 2
    means = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - half) : i + half + 1]]
        means.append((x, sum(near) / len(near)))
    return means


class _Axes:
    """Positions of values in pixels."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def grid(self, x_label: str, y_label: str, *, x_ticks: bool = True) -> str:
        """Ticks with their numbers, and labels of the axes."""
        parts, marks = [], ticks(*self.y_range, most=5)
        for mark in marks:
            y = self.y(mark)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            parts.append(
                f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_text(mark, marks)}</text>'
            )
        marks = ticks(*self.x_range, most=8) if x_ticks else []
        whole = [mark for mark in marks if mark == round(mark)]  # iterations and frames have no halves
        parts += [
            f'<text class="tick" x="{self.x(mark):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
            f"{_text(mark, whole)}</text>"
            for mark in whole
        ]
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            parts.append(f'<text class="axis" x="{_LEFT}" y="{_TOP - 9}">{escape(y_label)}</text>')
        return "".join(parts)


def _hover_lines(series: Sequence[Series], axes: _Axes, x_label: str) -> str:
    """An invisible column at every x, which shows the values there when the pointer is over it."""
    at: dict[float, list[tuple[Series, float]]] = {}
    for s in series:
        for x, y in s.points:
            at.setdefault(x, []).append((s, y))
    xs = sorted(at)
    edges = [(a + b) / 2 for a, b in itertools.pairwise(xs)]
    columns = []
    for x, left, right in zip(xs, [xs[0], *edges], [*edges, xs[-1]], strict=True):
        start = axes.x(left) if left > xs[0] else _LEFT
        end = axes.x(right) if right < xs[-1] else WIDTH - _RIGHT
        dots = "".join(f'<circle class="{s.style}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4"/>' for s, y in at[x])
        values = ", ".join((f"{s.short or s.name} " if len(series) > 1 else "") + f"{y:.4g}" for s, y in at[x])
        columns.append(
            f'<g class="hit"><rect class="area" x="{start:.1f}" y="{_TOP}" width="{max(end - start, 0.5):.1f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"/><path class="cross" d="M{axes.x(x):.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>'
            f"{dots}{_readout(f'{x_label} {x:g}: {values}')}</g>"
        )
    return "".join(columns)


def _in_legend(series: Series) -> str:
    return f"{series.short} \N{MIDDLE DOT} {series.name}" if series.short else series.name


def _readout(text: str) -> str:
    return f'<text class="readout" x="{WIDTH - _RIGHT}" y="{_TOP - 9}" text-anchor="end">{escape(text)}</text>'


def _figure(title: str, legend: str, content: str) -> Markup:
    return Markup(
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{content}</svg></figure>'
    )


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high == low:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)


def _text(value: float, others: Sequence[float]) -> str:
    """A tick's number, with enough digits to differ from its neighbours."""
    largest = max(abs(mark) for mark in others)
    if largest >= 1e5 or largest < 1e-3:
        return f"{value:.1e}" if value else "0"
    step = abs(others[1] - others[0]) if len(others) > 1 else largest
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "\N{MINUS SIGN}")


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Means of neighbours, if there are more points than a chart can show."""
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


_Name = TypeVar("_Name")


def _finite(points: Sequence[tuple[_Name, float]]) -> list[tuple[_Name, float]]:
    return [(name, value) for name, value in points if math.isfinite(value)]
