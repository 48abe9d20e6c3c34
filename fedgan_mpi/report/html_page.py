"""A self-contained HTML page: tables, images as data URLs, no script and no link."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgan_mpi.files import write_complete

Row = dict[str, str]
"""Column head -> cell."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; color: #222 }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top }
figure img { width: 20rem; image-rendering: pixelated }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
.wide { overflow-x: auto }
"""


def write_page(path: Path, title: str, sections: Mapping[str, str]) -> None:
    """Write a page with these sections, heading -> HTML."""
    body = "".join(f"<h2>{heading}</h2>\n{content}\n" for heading, content in sections.items())
    title = html.escape(title)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
{body}</body></html>
"""
    # Names of files and classes may not be valid text.
    write_complete(path, page.encode(errors="backslashreplace"))


def render_table(rows: Sequence[Row]) -> str:
    """Return an HTML table; the first column is text, the others are numbers."""
    attributes = ["", *[" class='number'"] * (len(rows[0]) - 1)]

    def render_row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{attribute}>{html.escape(cell)}</{tag}>"
            for cell, attribute in zip(cells, attributes, strict=True)
        )

    body = "".join(f"<tr>{render_row(list(row.values()), 'td')}</tr>" for row in rows)
    return f"<table><tr>{render_row(list(rows[0]), 'th')}</tr>{body}</table>"


def render_figure(path: Path, caption: str) -> str:
    """Return an image with its caption."""
    text = html.escape(caption)
    return f"<figure>{render_image(path, caption)}<figcaption>{text}</figcaption></figure>"


def render_image(path: Path, alt: str) -> str:
    """Return an image element that contains the file."""
    kind = path.suffix.removeprefix(".")
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/{kind};base64,{content}" alt="{html.escape(alt)}">'
