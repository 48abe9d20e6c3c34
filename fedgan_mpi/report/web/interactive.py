"""Charts that show values under the pointer, drawn in the browser by Bokeh.

Bokeh is optional, and it is imported only here, when a page is written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fedgan_mpi.report.charts import Chart, Line, Panel, color_of

_GRAY = "#8b8f96"  # of text and lines; readable on a white and on a black page
_HEIGHT = 330  # pixels
_COLUMNS = 2  # panels side by side


@cache
def is_available() -> bool:
    """Return whether Bokeh is installed."""
    try:
        import bokeh.plotting  # noqa: F401
    except ImportError:
        return False
    return True


def library_script() -> str:
    """Return Bokeh's script for a page, without its widgets and tables."""
    from bokeh.resources import Resources

    (script,) = Resources(mode="inline", components=["bokeh"], log_level="error").js_raw[:1]
    return str(script)


def render(chart: Chart) -> dict[str, Any]:
    """Return the JSON object of a chart, for Bokeh.embed.embed_item."""
    from bokeh.embed import json_item
    from bokeh.layouts import gridplot

    figures: list[Any] = []
    for panel in chart.panels:
        shared = {"y_range": figures[0].y_range} if figures else {}
        figures.append(_figure(panel, chart, **shared))
    rows = [figures[n : n + _COLUMNS] for n in range(0, len(figures), _COLUMNS)]
    grid = gridplot(rows, sizing_mode="stretch_width", toolbar_location=None)
    return dict(json_item(grid if len(figures) > 1 else figures[0]))


def _figure(panel: Panel, chart: Chart, **shared: Any) -> Any:
    from bokeh.models import PlainText
    from bokeh.plotting import figure

    plot = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        y_axis_type="log" if chart.log else "linear",
        tools="xpan,box_zoom,reset",
        active_drag="box_zoom",
        toolbar_location="above",
        **shared,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    # A plain text: others may be formulas, for which Bokeh loads a script from elsewhere.
    plot.xaxis.axis_label = PlainText(text=panel.x_label)
    if not shared:
        plot.yaxis.axis_label = PlainText(text=chart.y_label.replace("\n", ", "))
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "13px"
        axis.axis_label_text_color = axis.major_label_text_color = _GRAY
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = _GRAY
    for lines in plot.grid:
        lines.grid_line_color, lines.grid_line_alpha = _GRAY, 0.25
    if chart.level is not None:
        ends = [[each(line.x, default=0.0) for line in panel.lines] for each in (min, max)]
        plot.line([min(ends[0]), max(ends[1])], chart.level[1], color=_GRAY, line_dash="dotted")
    renderers = _draw_areas(plot, panel) | {
        n: _draw_line(plot, line, color_of(n), chart.markers)
        for n, line in enumerate(panel.lines)
        if not line.stacked
    }
    if len({tuple(line.x) for line in panel.lines}) == 1:
        _add_common_hover(plot, panel)
    else:
        _add_hovers(plot, panel, renderers)
    return plot


def _draw_areas(plot: Any, panel: Panel) -> dict[int, Any]:
    """Draw the stacked lines as areas. Return them by their index."""
    stacked = {f"y{n}": n for n, line in enumerate(panel.lines) if line.stacked}
    if not stacked:
        return {}
    columns = {"x": panel.lines[0].x, **{key: panel.lines[n].y for key, n in stacked.items()}}
    colors = [color_of(n) for n in stacked.values()]
    areas = plot.varea_stack(list(stacked), x="x", color=colors, source=columns, alpha=0.6)
    return dict(zip(stacked.values(), areas, strict=True))


def _draw_line(plot: Any, line: Line, color: str, markers: bool) -> Any:
    columns = {"x": line.x, "y": line.y}
    if line.band is not None:
        low, high = line.band
        plot.varea(x=line.x, y1=low, y2=high, color=color, alpha=0.15)
    renderer = plot.line("x", "y", source=columns, color=color, line_width=2)
    if markers:
        renderer = plot.scatter("x", "y", source=columns, color=color, size=6)
    return renderer


def _add_common_hover(plot: Any, panel: Panel) -> None:
    """Show the values of all lines at the pointer's round in one box."""
    from bokeh.models import HoverTool

    columns = {"x": panel.lines[0].x, **{f"y{n}": line.y for n, line in enumerate(panel.lines)}}
    # An invisible line, since a tool shows one box per line. A line with gaps has no value in them.
    fullest = max(range(len(panel.lines)), key=lambda n: sum(y == y for y in panel.lines[n].y))
    target = plot.line("x", f"y{fullest}", source=columns, line_alpha=0)
    names = [f"y{n}" for n in range(len(panel.lines))]
    rows = [(line.label, f"@{name}{{%.4g}}") for line, name in zip(panel.lines, names, strict=True)]
    tool = HoverTool(
        renderers=[target],
        mode="vline",
        line_policy="nearest",
        tooltips=[(panel.x_label, "@x{%.6g}"), *rows],
        formatters={f"@{name}": "printf" for name in ["x", *names]},
    )
    plot.add_tools(tool)


def _add_hovers(plot: Any, panel: Panel, renderers: dict[int, Any]) -> None:
    """Show label and values of the line under the pointer."""
    from bokeh.models import HoverTool

    for n, line in enumerate(panel.lines):
        tool = HoverTool(
            renderers=[renderers[n]],
            visible=False,
            tooltips=[(line.label, "@y{%.4g}"), (panel.x_label, "@x{%.6g}")],
            formatters={"@x": "printf", "@y": "printf"},
        )
        plot.add_tools(tool)
