"""A self-contained HTML page: tables, images as data URLs, charts, and the script that moves them.

No request leaves the page: its content security policy forbids them. Without scripts and in print,
all tables, images and charts are visible.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgan_mpi.files import write_complete
from fedgan_mpi.report.charts import Chart, color_of
from fedgan_mpi.report.web import interactive


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table with more than text."""

    text: str
    value: float | None = None
    """The exact number, by which the column is sorted."""
    share: float | None = None
    """Length of a bar beside the text, 0 to 1."""
    shade: float | None = None
    """Strength of a color behind the text, 0 to 1."""


Row = Mapping[str, str | Cell]
"""Column head -> cell."""

_POLICY = (
    "default-src 'none'; img-src data:; font-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
_HERE = Path(__file__).parent


def write_page(path: Path, title: str, sections: Mapping[str, str], summary: str = "") -> None:
    """Write a page with these sections, heading -> HTML, and a sentence below its title.

    An empty section is left out.
    """
    filled = {heading: content for heading, content in sections.items() if content}
    body = "".join(f"<h2>{heading}</h2>\n{content}\n" for heading, content in filled.items())
    scripts = [(_HERE / "page.js").read_text(encoding="utf-8")]
    if '<div class="live">' in body:
        scripts.insert(0, interactive.library_script())
    title = html.escape(title)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{(_HERE / "page.css").read_text(encoding="utf-8")}</style></head>
<body><h1>{title}</h1>
{render_text(summary) if summary else ""}
{body}{"".join(f"<script>{script}</script>" for script in scripts)}</body></html>
"""
    # Names of files and classes may not be valid text.
    write_complete(path, page.encode(errors="backslashreplace"))


def render_table(rows: Sequence[Row], *, texts: int = 1) -> str:
    """Return an HTML table; the first `texts` columns are text, the others are numbers."""
    attributes = ["" if n < texts else " class='number'" for n in range(len(rows[0]))]
    heads = zip(rows[0], attributes, strict=True)
    head = "".join(f"<th{attribute}>{html.escape(cell)}</th>" for cell, attribute in heads)
    lines = []
    for row in rows:
        cells = zip(row.values(), attributes, strict=True)
        lines.append("".join(_render_cell(cell, attribute) for cell, attribute in cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='wide'>{table}</div>"


def _render_cell(cell: str | Cell, attribute: str) -> str:
    if isinstance(cell, str):
        return f"<td{attribute}>{html.escape(cell)}</td>"
    value = "" if cell.value is None else f" data-value='{cell.value!r}'"
    if cell.shade is not None:
        value += f" style='background:color-mix(in srgb,var(--bar) {cell.shade:.0%},transparent)'"
    bar = ""
    if cell.share is not None:
        bar = f" <span class='bar'><i style='width:{cell.share:.1%}'></i></span>"
    return f"<td{attribute}{value}>{html.escape(cell.text)}{bar}</td>"


def render_text(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def render_chart(chart: Chart, png: bytes) -> str:
    """Return a chart: the PNG image, and with Bokeh a chart with values under the pointer."""
    live = ""
    if interactive.is_available():
        lines = enumerate(chart.labels)
        items = "".join(
            f"<li><i style='background:{color_of(n)}'></i>{html.escape(label)}</li>"
            for n, label in lines
        )
        if chart.level is not None:
            items += f"<li><i></i>{html.escape(chart.level[0])}</li>"
        data = _script_json(interactive.render(chart))
        live = (
            f'<div class="live"><ul class="legend">{items}</ul></div>'
            f'<script type="application/json">{data}</script>'
        )
    still = _render_png(png, chart.title).replace("<img ", "<img class='still' ", 1)
    return f"<div class='chart'>{live}{still}</div>"


def render_slides(paths: Sequence[Path], captions: Sequence[str]) -> str:
    """Return images of which a slider shows one at a time; at first the last one."""
    figures = [render_figure(path, caption) for path, caption in zip(paths, captions, strict=True)]
    last = len(paths) - 1
    slider = (
        f"<label class='slider'>Round <input type='range' min='0' max='{last}' value='{last}' "
        "aria-label='round of the samples'></label>"
    )
    return f"<div class='slides'>{slider}{''.join(figures)}</div>"


def render_figure(path: Path, caption: str) -> str:
    """Return an image with its caption."""
    text = html.escape(caption)
    return f"<figure>{render_image(path, caption)}<figcaption>{text}</figcaption></figure>"


def render_image(path: Path, alt: str) -> str:
    """Return an image element that contains a PNG file."""
    return _render_png(path.read_bytes(), alt)


def _render_png(content: bytes, alt: str) -> str:
    encoded = base64.b64encode(content).decode()
    return f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(alt)}">'


def _script_json(value: object) -> str:
    """Return JSON that may stand in a script element: in ASCII, and without tags."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
