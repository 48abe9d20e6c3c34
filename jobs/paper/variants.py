"""Tables of variants: one per line, a name and flags that override a data set's TOML file.

`jobs/sweep.sbatch` reads the same tables.
"""

from __future__ import annotations

from pathlib import Path


def read_variants(table: Path) -> dict[str, list[str]]:
    """Return name -> flags, in the table's order."""
    lines = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    return {words[0]: words[1:] for words in lines if words and not words[0].startswith("#")}
