"""Tables of variants: a line each, a name and the flags over a data set's TOML file.

python jobs/paper/variants.py TABLE         how many there are
python jobs/paper/variants.py TABLE INDEX   name and flags of one, on one line; from 0
"""

from __future__ import annotations

import sys
from pathlib import Path


def read_variants(table: Path) -> dict[str, list[str]]:
    """Name -> flags, in the table's order."""
    lines = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    return {words[0]: words[1:] for words in lines if words and not words[0].startswith("#")}


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    variants = list(read_variants(Path(sys.argv[1])).items())
    if len(sys.argv) == 2:
        print(len(variants))
        return
    name, flags = variants[int(sys.argv[2])]
    print(name, *flags)


if __name__ == "__main__":
    main()
