"""A small plot as SVG: lines over two logarithmic axes, readable on light and dark pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 84, 16, 44
NAME_HEIGHT = 14
COLOURS = ("#c2410c", "#2563eb", "#15803d", "#7c3aed")


@dataclass(frozen=True)
class Line:
    """A named line of points, in the order of their first number."""

    name: str
    points: Sequence[tuple[float, float]]


def plot(lines: Sequence[Line], *, across: str, up: str) -> str:
    """The lines with a grid at each power of ten; all numbers must be above 0."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_axis, y_axis = _axis(xs, LEFT, WIDTH - RIGHT), _axis(ys, HEIGHT - BOTTOM, TOP)
    grey = 'stroke="#888" stroke-opacity="0.35"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#777">',
        f"<title>{up} over {across}: {', '.join(line.name for line in lines)}</title>",
    ]
    for value in x_axis.marks:
        x = x_axis.place(value)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" {grey}/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:,g}</text>')
    for value in y_axis.marks:
        y = y_axis.place(value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" {grey}/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{across}</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2}" transform="rotate(-90 14 {HEIGHT / 2})" text-anchor="middle">{up}</text>'
    )
    for line, colour in zip(lines, COLOURS, strict=False):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    ends = [(line.points[-1], line.name, colour) for line, colour in zip(lines, COLOURS, strict=False)]
    lowest = -math.inf
    for (x, y), name, colour in sorted(ends, key=lambda end: -end[0][1]):
        lowest = max(y_axis.place(y) + 4, lowest + NAME_HEIGHT)  # names of lines that end together stand below another
        parts.append(f'<text x="{x_axis.place(x) + 8:.1f}" y="{lowest:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @property
    def marks(self) -> list[float]:
        return [10.0**power for power in range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)]

    def place(self, value: float) -> float:
        """Where a value is on the page."""
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    """From the power of ten at or below the least value to the one at or above the greatest."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return _Axis(low, max(high, low + 1), start, end)
