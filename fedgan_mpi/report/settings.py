"""The configuration of runs: what differs from the defaults, and between runs."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from typing import Any

from fedgan_mpi.config.by_size import defaults_by_size
from fedgan_mpi.config.parsing import DEFAULTS, flatten
from fedgan_mpi.report.grouping import Group, settings_of
from fedgan_mpi.report.history import History
from fedgan_mpi.report.web.page import Row, render_table, render_text


def changed_values(run: History) -> list[Row]:
    """Return one row per key whose value is not the default."""
    values = flatten(dataclasses.asdict(run.experiment))
    defaults = dict(DEFAULTS)
    if run.device_data is not None:
        defaults |= flatten(defaults_by_size(run.experiment, run.device_data.image_shape))
    return [
        {"key": key, "value": _format(value), "default": _format(defaults.get(key))}
        for key, value in values.items()
        if value != defaults.get(key)
    ]


def settings_section(run: History, config: str) -> str:
    """Return the values that are not the default, and the content of config.toml."""
    rows = changed_values(run)
    text = "All values are the defaults." if not rows else "Values that are not the default:"
    table = render_table(rows, texts=3) if rows else ""
    return (
        f"{render_text(text)}{table}"
        f"<details><summary>All values (config.toml)</summary><pre>{html.escape(config)}</pre>"
        "</details>"
    )


def differences_section(groups: Sequence[Group]) -> str:
    """Return the values that differ between groups, and all values, one column per group."""
    tables = [settings_of(group.runs[0]) for group in groups]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows: list[Row] = [
        {"key": key}
        | {
            group.label: _format(table.get(key))
            for group, table in zip(groups, tables, strict=True)
        }
        for key in keys
    ]
    different = [row for row in rows if len({*row.values()} - {row["key"]}) > 1]
    shown = "No value differs."
    table = ""
    if different:
        shown, table = "Values that differ:", render_table(different, texts=len(groups) + 1)
    return (
        f"{render_text(shown)}{table}<details><summary>All values</summary>"
        f"{render_table(rows, texts=len(groups) + 1)}</details>"
    )


def _format(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)
