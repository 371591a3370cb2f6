"""The page around a report: escaping, tables, and a style that needs nothing from the network."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Refuses every request, so that a report cannot depend on one: what is shown is in the file.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; media-src data:"
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: anchor, heading and finished HTML."""

    anchor: str
    title: str
    body: str


def esc(value: object) -> str:
    """Return the text of a value, safe inside HTML text and attributes."""
    return html.escape(str(value), quote=True)


def prose(text: str) -> str:
    """Return escaped text in which a number and its percent sign stay on one line."""
    return esc(text).replace(" %", "&nbsp;%")


def page(title: str, header: str, sections: Iterable[Section], footer: str) -> str:
    """Return a complete HTML document."""
    parts = list(sections)
    links = "".join(f'<a href="#{s.anchor}">{esc(s.title)}</a>' for s in parts)
    body = "\n".join(
        f'<section id="{s.anchor}"><h2>{esc(s.title)}</h2>\n{s.body}\n</section>' for s in parts
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>{header}<nav>{links}</nav></header>
<main>
{body}
</main>
<footer>{footer}</footer>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Iterable[int] = (),
    anchor: str = "",
) -> str:
    """Return an HTML table that scrolls sideways on narrow screens.

    Args:
        head: Column titles, as text.
        rows: Cells, as finished HTML.
        numeric: Indices of right-aligned columns.
        anchor: The element's id, if it shall have one.
    """
    right = set(numeric)
    align = [' class="num"' if i in right else "" for i in range(len(head))]
    top = "".join(f"<th{a}>{esc(text)}</th>" for a, text in zip(align, head, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{a}>{c}</td>" for a, c in zip(align, row, strict=True)) + "</tr>"
        for row in rows
    )
    name = f' id="{anchor}"' if anchor else ""
    return (
        f'<div class="scroll"><table{name}><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return a definition list; values are text and escaped."""
    rows = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in pairs)
    return f"<dl>{rows}</dl>"


def folded(title: str, body: str, *, is_open: bool = False) -> str:
    """Return HTML that unfolds on a click."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{esc(title)}</summary>{body}</details>"


def code(text: str) -> str:
    """Return preformatted text."""
    return f"<pre>{esc(text.rstrip())}</pre>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text; `kind` is its class in the style sheet."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{prose(text)}</p>"


_STYLE = """
:root{color-scheme:light;--ink:#1b2430;--soft:#5d6b7a;--line:#dfe4ea;--paper:#fff;--back:#f5f7f9;
--good:#1a7f4b;--bad:#c2362b;--warn:#8a5a00;--accent:#2563a8}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--back);color:var(--ink);line-height:1.5;font-size:15px;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 12px}
h3{font-size:14px;margin:0 0 4px;font-weight:600}
p{margin:0 0 10px;max-width:78ch}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;padding:14px 0;font-size:14px}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:20px;
margin:0 0 16px}
.soft{color:var(--soft)}.small,footer{font-size:13px}footer{color:var(--soft);padding-bottom:40px}
.chip{display:inline-block;border-radius:999px;padding:1px 10px;font-size:12.5px;font-weight:600;
border:1px solid currentColor;white-space:nowrap}
.chip.good{color:var(--good)}.chip.bad{color:var(--bad)}.chip.warn{color:var(--warn)}
.note{background:#fff7e0;border:1px solid #ecd9a0;border-radius:8px;padding:10px 14px;
margin:12px 0 0}
.note ul{margin:0;padding-left:18px}.note p{margin:0}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr));
margin-bottom:16px}
.card{border:1px solid var(--line);border-radius:10px;padding:14px 16px;min-width:0}
.card .big{font-size:34px;font-weight:650;line-height:1.15;font-variant-numeric:tabular-nums}
.card .mid{font-size:21px;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}
.card .label{color:var(--soft);font-size:13px;overflow-wrap:anywhere}
.card.head{background:#f0f6fc;border-color:#c9dcf0}
.scroll{overflow-x:auto;margin:0 0 12px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:600;font-size:12.5px;white-space:nowrap}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);
vertical-align:middle}
th.num,td.num{text-align:right;white-space:nowrap}
td:last-child,th:last-child{padding-right:0}
tbody tr:last-child td{border-bottom:0}
tr.sum td,.strong{font-weight:650}
td.task div{min-width:190px;max-width:330px;overflow-wrap:anywhere}
.nowrap{white-space:nowrap}
.bar{display:block;width:150px;height:16px}
.strip{display:flex;flex-wrap:wrap;gap:2px;width:171px}
.strip i{width:9px;height:9px;border-radius:2px;background:#b9c2cc}
.strip i,.strip a{display:block}
.strip i.success{background:#4aa877}.strip i.failure{background:var(--bad)}
.strip i.error{background:repeating-linear-gradient(45deg,#8a94a0 0 2px,#dfe4ea 2px 4px)}
.videos{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr))}
figure{margin:0;border:1px solid var(--line);border-radius:8px;overflow:hidden;background:#fff}
figure:target{outline:3px solid var(--accent)}
figure.failure{border-color:#e3aaa5}
video{display:block;width:100%;aspect-ratio:2/1;background:#101418;object-fit:contain}
figcaption{padding:8px 10px;font-size:13px}
figcaption .row{display:flex;justify-content:space-between;gap:8px;align-items:center}
.charts{display:grid;gap:20px;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));
margin-bottom:12px}
.charts.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.charts.two svg{max-width:460px}.chart{min-width:0}.chart svg{display:block;width:100%;height:auto}
.chart text{font-size:11px;fill:var(--soft);font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;color:var(--soft)}
.legend.keys{font-size:13.5px;margin-bottom:12px}
.legend b{display:inline-block;width:14px;height:3px;margin-right:5px;vertical-align:middle;
border-radius:2px}
dl{display:grid;grid-template-columns:minmax(110px,max-content) 1fr;gap:3px 18px;margin:0 0 12px;
font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
pre{background:#f6f8fa;border:1px solid var(--line);border-radius:8px;padding:12px;margin:8px 0;
overflow-x:auto;font-size:12.5px;line-height:1.45;
font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
details{margin:0 0 8px}summary{cursor:pointer;font-weight:600;font-size:14px}
button{font:inherit;font-size:13px;border:1px solid var(--line);border-radius:6px;
background:#fff;color:var(--ink);padding:4px 12px;cursor:pointer;margin-bottom:12px}
button:hover{border-color:var(--accent)}
@media(max-width:600px){header,main,footer{padding:0 10px}header{padding-top:18px}
section{padding:14px}.card .big{font-size:28px}dl{grid-template-columns:1fr}dd{margin-bottom:6px}
table{font-size:13px}
#success-table thead{display:none}#success-table td{border:0;padding:0}
#success-table tr{display:flex;flex-wrap:wrap;gap:3px 12px;align-items:center;padding:9px 0;
border-bottom:1px solid var(--line)}
#success-table td.task,#success-table td.episodes:not(:empty){flex-basis:100%}
#success-table td.task div{max-width:none}.strip{width:auto}
td.rate{font-weight:650}td.share::after{content:" %"}td.interval{flex:1 1 100px}.bar{width:100%}
td.errors::before{content:"errors "}td.steps:not(:empty)::before{content:"steps "}}
@media print{body{background:#fff}nav,button{display:none}section{break-inside:avoid}}
"""

_SCRIPT = """
for (const button of document.querySelectorAll("button[data-play]"))
  button.addEventListener("click", () => {
    const clips = [...document.querySelectorAll("video")];
    const start = clips.some(clip => clip.paused);
    clips.forEach(clip => start ? clip.play() : clip.pause());
    button.textContent = start ? "Pause all" : "Play all";
  });
for (const clip of document.querySelectorAll("video"))
  clip.addEventListener("mouseenter", () => clip.play());
"""
