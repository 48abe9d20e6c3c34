"""Tables of variants, as `jobs/sweep.sbatch` reads them, too: a line each, a name and the flags
over a data set's TOML file."""

from __future__ import annotations

from pathlib import Path


def read_variants(table: Path) -> dict[str, list[str]]:
    """Name -> flags, in the table's order."""
    lines = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    return {words[0]: words[1:] for words in lines if words and not words[0].startswith("#")}
