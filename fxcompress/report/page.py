"""A survey as one HTML page: no scripts, no requests, readable by keyboard and without colours. Torch-free."""

from collections.abc import Iterable, Sequence
from html import escape

from fxcompress.plan import KEEP, Plan
from fxcompress.report.chart import draw_points, draw_timelines, mark_symbol
from fxcompress.report.data import GraphView, Kind, Line, Point, Survey
from fxcompress.report.fold import Row, fold
from fxcompress.report.style import style_sheet
from fxcompress.report.text import accuracy_text, human_bytes, logits, printable, ratio, representation, short_op
from fxcompress.timeline import Life, Timeline

LONGEST_LISTING = 5000
"""Lines of a graph that are listed: browsers get slow beyond."""
TALLEST = 8
"""Storages shown of those alive at a peak."""
KINDS: dict[Kind, str] = {
    "plain": "PyTorch's own cut",
    "given": "the options given",
    "width": "other widths",
    "budget": "budgets",
}
MODEL = (
    "Peaks are a model of the allocator, without parameters, inputs and returned gradients. Times are a roofline from "
    "data sheets: they rank plans of one model and are no measurement. The error is that of the stored values, root "
    "mean square over all saved bytes and for normally distributed values; it is not the gradient's error, which "
    "<code>fxcompress verify</code> measures."
)


def render(survey: Survey) -> str:
    """The page of a survey; equal surveys give equal text."""
    title = f"fxcompress: {survey.target}"
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{_text(title)}</title>",
        f"<style>{style_sheet()}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{_text(survey.target)}</h1>",
        f"<p>{_options(survey.plan)}</p>",
        "</header>",
        "<main>",
        _cards(survey),
        *_settings(survey.points),
        *(part for number, view in enumerate(survey.graphs, 1) for part in _graph(view, number, len(survey.graphs))),
        "</main>",
        f"<footer><h2>What the numbers mean</h2><p>{MODEL}</p></footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _text(text: str) -> str:
    return escape(printable(text))


def _options(plan: Plan) -> str:
    given = " ".join(f"{name}={value}" for name, value in plan.options)
    return _text(f"fxcompress {plan.fxcompress_version}, torch {plan.torch_version}. {given}")


def _cards(survey: Survey) -> str:
    plain, given = survey.points[0], survey.points[1]
    cards = [
        (
            "saved for backward",
            f"{human_bytes(plain.saved_bytes)} → {human_bytes(given.saved_bytes)}",
            f"{ratio(plain.saved_bytes, given.saved_bytes)} fewer than PyTorch's own cut",
        ),
        (
            "predicted peak",
            f"{human_bytes(plain.peak_bytes)} → {human_bytes(given.peak_bytes)}",
            f"{ratio(plain.peak_bytes, given.peak_bytes)} lower; a model",
        ),
        ("extra time", f"{given.extra_share:+.1%}", "of the step; a model"),
        ("error of stored values", f"{given.stored_error:.1%}", "root mean square; a model"),
    ]
    inner = "".join(f"<div><dt>{head}</dt><dd>{value}<small>{below}</small></dd></div>" for head, value, below in cards)
    return f'<dl class="cards">{inner}</dl>'


def _settings(points: Sequence[Point]) -> list[str]:
    kinds = [kind for kind in KINDS if any(point.kind == kind for point in points)]
    legend = "".join(f"<li>{mark_symbol(kind)}{KINDS[kind]}</li>" for kind in kinds)
    rows = [
        [
            str(number),
            mark_symbol(point.kind) + _text(point.label),
            *(
                [human_bytes(point.saved_bytes), human_bytes(point.peak_bytes), f"{point.extra_share:+.1%}",
                 f"{point.stored_error:.1%}"]
                if not point.failure
                else ["–", "–", "–", "–"]
            ),
            _text(point.failure),
        ]
        for number, point in enumerate(points, 1)
    ]  # fmt: skip
    heads = ["#>", "setting", "saved>", "predicted peak>", "modelled extra time>", "error of stored values>", "note"]
    styles = ["given" if point.kind == "given" else "" for point in points]
    return [
        "<section>",
        "<h2>Peak, time and error of other settings</h2>",
        "<p>Every number here is a model. Further left is a lower peak, further down a faster step.</p>",
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="Chart of settings">{draw_points(points)}'
        f'</div><figcaption><ul class="legend">{legend}</ul></figcaption></figure>',
        _table("Settings", heads, rows, styles),
        "</section>",
    ]


def _graph(view: GraphView, number: int, count: int) -> list[str]:
    name = f"Graph {number} of {count}: " if count > 1 else ""
    legend = (
        '<li><span class="swatch plain"></span>PyTorch\'s own cut</li><li><span class="swatch"></span>the plan</li>'
    )
    return [
        "<section>",
        f"<h2>{name}Memory over one step</h2>",
        "<p>Predicted live bytes while each node runs. Both forwards fill the left half, both backwards the right.</p>",
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="Memory over one step">'
        f'{draw_timelines(view.before, view.after)}</div><figcaption><ul class="legend">{legend}</ul></figcaption>'
        "</figure>",
        "<details><summary>What is alive at the two peaks</summary>",
        _alive("PyTorch's own cut", view.before),
        _alive("the plan", view.after),
        "</details>",
        f"<h2>{name}What is saved, and how</h2>",
        *([f"<p>Logits: {_text(logits(view.plan.loss))}.</p>"] if view.plan.loss.shape else []),
        _decisions(view),
        f"<h2>{name}The rewritten graphs</h2>",
        _listing("Forward graph", view.forward),
        _listing("Backward graph", view.backward),
        "</section>",
    ]


def _alive(title: str, timeline: Timeline) -> str:
    if not timeline.moments:
        return ""
    top = timeline.moments[timeline.peak]
    alive = [life for life in timeline.lives if life.first <= timeline.peak <= life.last]
    alive.sort(key=lambda life: -life.nbytes)
    rows = [_alive_row(life) for life in alive[:TALLEST]]
    rest = alive[TALLEST:]
    if rest:
        rows.append([f"{len(rest)} more", "", "", human_bytes(sum(life.nbytes for life in rest)), ""])
    if top.workspace_bytes:
        rows.append(["working memory of the node", "", "", human_bytes(top.workspace_bytes), ""])
    caption = f"{title}: {human_bytes(top.live_bytes)} at {top.name} ({top.phase})"
    return _table(caption, ["tensor", "layer", "source", "bytes>", "saved"], rows)


def _alive_row(life: Life) -> list[str]:
    saved = "for backward" if life.saved else ""
    return [_text(life.name), _text(life.layer), _text(life.source), human_bytes(life.nbytes), saved]


def _decisions(view: GraphView) -> str:
    rows = fold(view.plan.decisions)
    heads = ["layer", "tensor", "source", "operator", "shape", "dtype", "bytes>", "representation", "after>"]
    heads += [*(["gradient error>"] if view.plan.accuracies else []), "reason"]
    styles = ["keep" if row.first.codec == KEEP else "" for row in rows]
    caption = "Saved tensors, those of identical layers in one row, the largest first"
    shown = [_decision(row, errors=bool(view.plan.accuracies)) for row in rows]
    limits = [f"<p>Error of the gradient: {_text(accuracy_text(accuracy))}.</p>" for accuracy in view.plan.accuracies]
    return "".join(limits) + _table(caption, heads, shown, styles)


def _decision(row: Row, *, errors: bool) -> list[str]:
    decision, tensor = row.first, row.first.tensor
    cells = [row.layer, row.name, tensor.source, short_op(tensor.op), "x".join(map(str, tensor.shape)), tensor.dtype]
    cells += [human_bytes(row.nbytes_before), representation(decision), human_bytes(row.nbytes_after)]
    cells += [f"{row.predicted_error:.2g}" if row.predicted_error else "–"] if errors else []
    return [_text(cell) for cell in (*cells, decision.reason)]


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()) -> str:
    """A table in a box that scrolls; cells are HTML, and a head that ends in `>` is a column of numbers."""
    numbers = [head.endswith(">") for head in heads]
    titles = "".join(
        f'<th scope="col"{_number(number)}>{head.rstrip(">")}</th>' for head, number in zip(heads, numbers, strict=True)
    )
    body = []
    for i, row in enumerate(rows):
        style = f' class="{styles[i]}"' if i < len(styles) and styles[i] else ""
        cells = "".join(f"<td{_number(number)}>{cell}</td>" for cell, number in zip(row, numbers, strict=True))
        body.append(f"<tr{style}>{cells}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{titles}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def _number(number: bool) -> str:
    return ' class="n"' if number else ""


def _listing(title: str, lines: Sequence[Line]) -> str:
    shown = [_line(line) for line in lines[:LONGEST_LISTING]]
    if len(lines) > LONGEST_LISTING:
        shown.append(f"<li>… {len(lines) - LONGEST_LISTING} more lines</li>")
    return (
        f"<details><summary>{title}: {len(lines)} lines</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><ol class="listing code">\n'
        + "\n".join(shown)
        + "\n</ol></div></details>"
    )


def _line(line: Line) -> str:
    code = _text(line.code)
    code = f'<span class="codec">{code}</span>' if line.kind == "codec" else code
    where = "  ".join(filter(None, [line.shape, line.layer, line.source]))
    parts = [code, f'<span class="where">{_text(where)}</span>' if where else ""]
    parts.append(f'<span class="note">⟵ {_text(line.note)}</span>' if line.note else "")
    return f"<li>{'  '.join(filter(None, parts))}</li>"
