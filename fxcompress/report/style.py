"""The page's style: two palettes by `prefers-color-scheme`, one column, tables that scroll by themselves."""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "back": "#ffffff", "text": "#1b1f24", "muted": "#57606a", "rule": "#d0d7de", "panel": "#f6f8fa",
    "ours": "#0a58a6", "plain": "#9a4500", "note": "#116329",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "back": "#0f1317", "text": "#e6edf3", "muted": "#9ba7b4", "rule": "#343c46", "panel": "#181e25",
    "ours": "#6cb2ff", "plain": "#f2a55c", "note": "#7ee2a0",
}  # fmt: skip
TEXT_COLOURS = ("text", "muted", "ours", "plain", "note")
"""Colours in which text is written, on `back` and on `panel`."""

RULES = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem 1rem 4rem;background:var(--back);color:var(--text);
 font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}h3{font-size:1rem;margin:1.5rem 0 .5rem}
p,figcaption{color:var(--muted);margin:.25rem 0 .75rem;max-width:48rem}
code,pre,.code{font-family:ui-monospace,monospace;font-size:.85em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:.75rem;margin:1rem 0;padding:0}
.cards div{background:var(--panel);border:1px solid var(--rule);border-radius:.5rem;padding:.75rem 1rem}
.cards dt{color:var(--muted);font-size:.85rem}.cards dd{margin:0;font-size:1.25rem;font-weight:600}
.cards dd small{display:block;color:var(--muted);font-size:.8rem;font-weight:400}
figure{margin:0}.chart{display:block;width:100%;min-width:36rem;height:auto}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:.5rem}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--ours);outline-offset:2px}
.chart text{fill:var(--muted);font-size:13px}.chart text.peak{font-weight:600;paint-order:stroke;stroke:var(--back);
 stroke-width:4px}
.chart text.ours{fill:var(--ours)}.chart text.plain{fill:var(--plain)}
.chart text.number{fill:var(--text);font-size:12px}
.grid{stroke:var(--rule);stroke-width:1}.turn{stroke:var(--muted);stroke-width:1;stroke-dasharray:2 4}
.line{fill:none;stroke-width:2}.line.ours,.mark.ours{stroke:var(--ours)}.line.plain,.mark.plain{stroke:var(--plain)}
.line.plain{stroke-dasharray:6 3}.area.ours{fill:var(--ours);fill-opacity:.15}
.dot.ours,.mark.ours{fill:var(--ours)}.dot.plain,.mark.plain{fill:var(--plain)}.mark.hollow{fill:var(--back)}
.mark{stroke-width:1.5}.key{width:1em;height:1em;vertical-align:-.1em;margin-right:.4em}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.5rem;color:var(--muted);font-size:.875rem;list-style:none;padding:0}
.swatch{display:inline-block;width:1.75em;margin-right:.4em;vertical-align:.25em;border-top:3px solid var(--ours)}
.swatch.plain{border-top:3px dashed var(--plain)}
table{border-collapse:collapse;width:100%;font-size:.85rem}
caption{text-align:left;color:var(--muted);padding:.5rem .75rem}
th,td{padding:.35rem .75rem;text-align:left;vertical-align:top;border-top:1px solid var(--rule)}
thead th{border-top:0;color:var(--muted);font-weight:600;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
tr.keep td{color:var(--muted)}tr.given td{font-weight:600}
details{margin:.75rem 0}summary{cursor:pointer;font-weight:600;padding:.25rem 0}
.listing{margin:0;padding:.5rem 0;list-style:none;counter-reset:line;white-space:pre;min-width:max-content}
.listing li{counter-increment:line;padding:0 .75rem}
.listing li::before{content:counter(line);display:inline-block;width:4ch;margin-right:1.5ch;text-align:right;
 color:var(--muted)}
.listing .note{color:var(--note)}.listing .where{color:var(--muted)}.listing .codec{color:var(--ours)}
"""


def style_sheet() -> str:
    """The text of the page's one style element."""
    return f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n{_dark()}{RULES}"


def _dark() -> str:
    return f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"


def _variables(palette: Mapping[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in palette.items())
