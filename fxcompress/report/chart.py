"""Charts as inline SVG: the memory of a step over time, and settings by peak and time. Torch-free, no scripts.

Colours are CSS classes of the page (`report/style.py`); what a colour says, a dash or a shape says too.
"""

import math
from collections.abc import Sequence
from html import escape

from fxcompress.report.data import Kind, Point
from fxcompress.report.text import human_bytes, printable
from fxcompress.timeline import Timeline

WIDTH, HEIGHT = 960, 320
LEFT, RIGHT, TOP, BOTTOM = 84, 16, 34, 44
PIXELS = WIDTH - LEFT - RIGHT
TICKS = 5
"""Grid lines at most, besides the axis."""
MARKS: dict[Kind, str] = {"plain": "square", "given": "star", "width": "circle", "budget": "diamond"}


def draw_timelines(before: Timeline, after: Timeline) -> str:
    """Live bytes over one step under PyTorch's own cut (dashed) and under the plan (filled).

    Both forwards take the left half and both backwards the right one, whatever their numbers of nodes.
    """
    top = max(before.peak_bytes, after.peak_bytes, 1)
    peaks = f"{human_bytes(before.peak_bytes)} under PyTorch's own cut, {human_bytes(after.peak_bytes)} under the plan"
    middle = LEFT + PIXELS / 2
    parts = [
        _open("Predicted memory over one training step", f"Predicted live bytes; they peak at {peaks}."),
        *_y_axis(top),
        f'<path class="area ours" d="{_steps(after, top, closed=True)}"/>',
        f'<path class="line ours" d="{_steps(after, top)}"/>',
        f'<path class="line plain" d="{_steps(before, top)}"/>',
        f'<line class="turn" x1="{middle}" x2="{middle}" y1="{TOP - 12}" y2="{HEIGHT - BOTTOM}"/>',
        _label(LEFT + PIXELS / 4, HEIGHT - 16, "forward"),
        _label(LEFT + 3 * PIXELS / 4, HEIGHT - 16, "backward"),
        _peak(before, top, "plain"),
        _peak(after, top, "ours"),
        "</svg>",
    ]
    return "\n".join(parts)


def draw_points(points: Sequence[Point]) -> str:
    """Settings by predicted peak (to the right) and modelled extra time (upwards); those without a plan left out."""
    shown = [point for point in points if not point.failure]
    right = 1.08 * max((point.peak_bytes for point in shown), default=1)
    low = min(0.0, *(point.extra_share for point in shown)) if shown else 0.0
    high = 1.15 * max([0.01, *(point.extra_share for point in shown)])
    parts = [
        _open(
            "Settings by predicted peak and modelled extra time",
            "Each mark is one setting; the table below has the same numbers. Further left and lower is better.",
        ),
        *_share_axis(low, high),
        *_peak_axis(right),
        _label(LEFT + PIXELS / 2, HEIGHT - 6, "predicted peak"),
    ]
    for number, point in enumerate(points, 1):
        if not point.failure:
            x = LEFT + PIXELS * point.peak_bytes / right
            parts.append(_mark(x, _y(point.extra_share - low, high - low), point, number))
    return "\n".join([*parts, "</svg>"])


def _peak_axis(right: float) -> list[str]:
    step = 2 ** max(math.ceil(math.log2(max(right, 1) / TICKS)), 0)
    sizes = range(0, int(right) + 1, step)
    return [_label(LEFT + PIXELS * size / right, HEIGHT - 24, human_bytes(size)) for size in sizes]


def mark_symbol(kind: Kind) -> str:
    """The mark of a kind of setting as a small picture for legends and tables."""
    return f'<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{_shape(kind)}</svg>'


def _open(title: str, description: str) -> str:
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg class="chart" {box} role="img"><title>{escape(title)}</title><desc>{escape(description)}</desc>'


def _y(value: float, top: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top, 1)


def _y_axis(top: int) -> list[str]:
    step = 2 ** max(math.ceil(math.log2(top / TICKS)), 0)
    return [part for size in range(0, top + 1, step) for part in _grid_line(_y(size, top), human_bytes(size))]


def _share_axis(low: float, high: float) -> list[str]:
    """Grid lines at multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
    lines = [part for i in ticks for part in _grid_line(_y(i * step - low, high - low), f"{100 * i * step:+.3g} %")]
    return [*lines, _label(LEFT - 8, TOP - 18, "extra time", "end")]


def _grid_line(y: float, text: str) -> list[str]:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
    return [line, _label(LEFT - 8, y + 4, text, "end")]


def _label(x: float, y: float, text: str, anchor: str = "middle", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(text)}</text>'


def _x(timeline: Timeline, moment: int) -> float:
    turn, count = timeline.turn, len(timeline.moments)
    if moment < turn:
        return LEFT + PIXELS / 2 * moment / max(turn, 1)
    return LEFT + PIXELS / 2 * (1 + (moment - turn) / max(count - turn, 1))


def _steps(timeline: Timeline, top: int, *, closed: bool = False) -> str:
    """Live bytes as a staircase; within one pixel only the highest shows."""
    columns: dict[int, int] = {}
    for i, moment in enumerate(timeline.moments):
        x = int(_x(timeline, i))
        columns[x] = max(columns.get(x, 0), moment.live_bytes)
    path = [f"M{LEFT} {_y(0, top)}"]
    for x, live in columns.items():
        path.append(f"H{x}V{_y(live, top)}")
    path.append(f"H{WIDTH - RIGHT}" + (f"V{_y(0, top)}Z" if closed else ""))
    return "".join(path)


def _peak(timeline: Timeline, top: int, style: str) -> str:
    if not timeline.moments:
        return ""
    x, y = _x(timeline, timeline.peak), _y(timeline.peak_bytes, top)
    moment = timeline.moments[timeline.peak]
    anchor = "start" if x < WIDTH * 0.7 else "end"
    title = f"<title>{escape(printable(moment.name))}</title>"
    dot = f'<circle class="dot {style}" cx="{round(x, 1)}" cy="{y}" r="4">{title}</circle>'
    return dot + _label(x, y - 9, human_bytes(timeline.peak_bytes), anchor, f"peak {style}")


def _mark(x: float, y: float, point: Point, number: int) -> str:
    title = f"{printable(point.label)}: {human_bytes(point.peak_bytes)}, {point.extra_share:+.1%} time"
    text = f'<text class="number" x="10" y="-8">{number}</text>'
    return f'<g transform="translate({round(x, 1)} {y})"><title>{escape(title)}</title>{_shape(point.kind)}{text}</g>'


def _shape(kind: Kind) -> str:
    match MARKS[kind]:
        case "square":
            return '<rect class="mark plain" x="-5" y="-5" width="10" height="10"/>'
        case "diamond":
            return '<path class="mark ours hollow" d="M0-7 7 0 0 7-7 0Z"/>'
        case "star":
            return '<path class="mark ours" d="M0-8 2-2 8-2 3 2 5 8 0 4-5 8-3 2-8-2-2-2Z"/>'
        case _:
            return '<circle class="mark ours" r="5"/>'
