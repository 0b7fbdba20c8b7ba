"""The page: sections as one self-contained HTML file; all text from data is escaped."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
    "script-src 'unsafe-inline' 'unsafe-eval'"  # plotly compiles its 3-D shaders' callers
)
CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
"""Without the last, plotly.js shows a button that uploads the figure to Plotly's cloud."""
STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #24292f; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { margin: 8px 0 0; font-size: 28px; } h2 { margin: 0; font-size: 19px; }
nav { margin: 12px 0 20px; } nav a { display: inline-block; margin-right: 14px; color: #2f6db3; }
section { background: #fff; border: 1px solid #dde1e6; border-radius: 8px; margin: 0 0 18px;
  padding: 18px 20px; }
section > p { margin: 4px 0 14px; color: #4a5460; max-width: 90ch; }
p.note { color: #8a4b00; }
.beside { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
@media (max-width: 900px) { .beside { grid-template-columns: 1fr; } }
.beside > div { min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0 0 14px; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0;
  border-bottom: 1px solid #e8ebee; overflow-wrap: break-word; max-width: 80ch; }
th { font-weight: 600; color: #4a5460; white-space: nowrap; }
figure { margin: 0 0 10px; } figcaption { color: #4a5460; margin: 0 0 3px; }
img { image-rendering: pixelated; max-width: 100%; display: block; }
"""


class Html(str):
    """Markup made in this file, in which all text from data is escaped."""


@dataclass(frozen=True)
class Section:
    """A heading, an introduction, and figures or markup below it."""

    title: str
    text: str
    parts: tuple[Any, ...]
    beside: bool = False


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table; without a `head`, the first column holds the headings."""
    top = "".join(f"<th>{escape(str(cell))}</th>" for cell in head)
    lines = [f"<tr>{top}</tr>"] if head else []
    for first, *rest in rows:
        tag = "td" if head else "th"
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        lines.append(f"<tr><{tag}>{escape(str(first))}</{tag}>{cells}</tr>")
    return Html(f'<div class="wide"><table>{"".join(lines)}</table></div>')


def image(png: bytes, caption: str, width: int) -> Html:
    """An embedded image of `width` CSS pixels."""
    data = base64.b64encode(png).decode()
    escaped = escape(caption)
    return Html(
        f"<figure><figcaption>{escaped}</figcaption>"
        f'<img alt="{escaped}" width="{width}" src="data:image/png;base64,{data}"></figure>'
    )


def note(text: str) -> Html:
    """A highlighted paragraph."""
    return Html(f'<p class="note">{escape(text)}</p>')


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page, with one copy of plotly.js; the policy in its head forbids any request."""
    links = "".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections))
    body = "\n".join(_section(index, section) for index, section in enumerate(sections))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>\n"
        f"<body><main><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}\n</main></body></html>\n"
    )


def _section(index: int, section: Section) -> str:
    parts = [_part(part, f"f{index}-{number}") for number, part in enumerate(section.parts)]
    body = "".join(parts)
    if section.beside:
        columns = "".join(f"<div>{part}</div>" for part in parts)
        body = f'<div class="beside">{columns}</div>'
    return (
        f'<section id="s{index}"><h2>{escape(section.title)}</h2>'
        f"<p>{escape(section.text)}</p>"
        f"{body}</section>"
    )


def _part(part: Any, name: str) -> str:
    if isinstance(part, Html):
        return part
    made: str = part.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=name)
    return made
