"""Reads and writes configurations as TOML. Knows neither commands nor MPI nor torch."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import msgspec

from fedgan_mpi.config.by_size import choose_as_before
from fedgan_mpi.config.experiment import Config
from fedgan_mpi.config.parsing import DEFAULTS, SECTIONS, flatten, make_config, parse_tables
from fedgan_mpi.config.paths import relative_to_file
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import PRIVATE, is_umask
from fedgan_mpi.schema import SchemaError, check, read_bounded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROVENANCE = "provenance"
"""The table of a run's config.toml that records versions, host and git state."""


class _Provenance(msgspec.Struct):
    """The keys of the provenance that are read; the others inform the user."""

    shards_sha256: str | None = None
    earlier: list[dict[str, Any]] = []


class _Config(msgspec.Struct):
    """A run's config.toml. The program reads its other tables as a configuration."""

    provenance: dict[str, Any]


_MAY_CHANGE = (
    "checkpoint.", "data.shards", "link.deadline", "link.peer_monitor", "link.survive", "log.",
    "record.", "run.umask", "training.overlap", "training.pin",
)  # fmt: skip
"""Keys and sections that a resumed run may change, because they do not affect its results."""


def config_table(config: Config) -> dict[str, dict[str, Any]]:
    """Return a configuration as TOML tables. Keys that are None by default are omitted if None.

    TOML has no null. A key that is None against its default becomes the string "null".
    """
    return {
        section: {
            key: _toml_value(value)
            for key, value in table.items()
            if value is not None or DEFAULTS[f"{section}.{key}"] is not None
        }
        for section, table in dataclasses.asdict(config).items()
    }


def read_values(path: Path) -> dict[str, Any]:
    """Return key -> typed value of a TOML file; missing keys take their default.

    Raises UserError naming file and key for an unknown key or a value of the wrong type.
    """
    try:
        # An editor of Windows may write a byte order mark.
        tables = tomllib.loads(read_bounded(path).decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, SchemaError) as error:
        reason = str(error) if isinstance(error, SchemaError) else "not UTF-8 text"
        raise UserError(f"{path} cannot be read: {reason}") from None
    except (ValueError, RecursionError) as error:
        why = "it is too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is not valid TOML: {why}") from None
    tables.pop(PROVENANCE, None)
    # A section whose keys are all commented out is an empty table.
    tables = {key: value for key, value in tables.items() if value != {} or key not in SECTIONS}
    try:
        values = parse_tables(tables)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return {key: relative_to_file(key, value, path) for key, value in values.items()}


def read_config(path: Path) -> Config:
    """Return the configuration in a TOML file. Raises UserError naming the file and the key."""
    return make_config(read_values(path))


def read_provenance(run: Path) -> dict[str, Any]:
    """Return the provenance table of a run's config.toml. Raises UserError if it is damaged."""
    path = run / "config.toml"
    try:
        table = tomllib.loads(read_bounded(path).decode())
        found: dict[str, Any] = check(table, _Config).provenance
        check(found, _Provenance)
    except OSError as error:
        raise UserError(f"{path} is missing or damaged: {error.strerror}") from None
    except SchemaError as error:
        raise UserError(f"{path} is missing or damaged: {error}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is missing or damaged: it is not valid TOML") from None
    return found


def umask_of(run: Path) -> str:
    """Return the umask for files that are written for a run: `run.umask` of its config.toml, or
    the private one if there is no such file."""
    try:
        found = read_values((run if run.is_dir() else run.parent) / "config.toml")["run.umask"]
    except UserError:
        return PRIVATE
    return str(found) if is_umask(str(found)) else PRIVATE


def resumed_config(run: Path, config: Config) -> Config:
    """Return a configuration with which a run continues, with the run's values where it has none.

    Raises UserError for a key that affects results and is not the run's.
    """
    path = run / "config.toml"
    before = read_config(path)
    config = choose_as_before(config, before)
    check_resumable(config_table(before), config_table(config), path)
    return config


def check_resumable(
    before: dict[str, Any], now: dict[str, Any], where: Path, *, renamed: bool = False
) -> None:
    """Check that a resumed run is the same experiment, with the same rounds or more.

    before, now: Tables of `config_table`. A missing key had its default.
    where: The file of `before`, for the message.
    renamed: Allow another run name and directory.

    Raises UserError for a key that affects results.
    """
    # A section without any key set is an empty table.
    old, new = (
        {key: value for key, value in flatten(tables).items() if key not in SECTIONS}
        for tables in (before, now)
    )
    for key in sorted(old.keys() | new.keys()):
        # The run may be older than the key: it behaved as the default does.
        default = _toml_value(DEFAULTS[key]) if DEFAULTS.get(key) is not None else None
        old_value = old.get(key, default)
        old_rounds = old.get(key, 0)
        longer = key == "training.rounds" and isinstance(old_rounds, int) and new[key] >= old_rounds
        moved = renamed and key in ("run.name", "run.directory")
        same = old_value == new.get(key, default)
        if same or longer or moved or key.startswith(_MAY_CHANGE):
            continue
        right = "left out" if old_value is None else f"{old_value!r}"
        if key == "training.rounds":
            right = f"at least {old.get(key)!r}"
        value = f"is {new[key]!r}" if key in new else "is left out"
        raise UserError(f"{key} {value}, but must be {right} as in {where}")


def check_same_shards(run: Path, sha256: str) -> None:
    """Check that a run was trained on the shards with this hash. Raises UserError otherwise."""
    recorded = read_provenance(run).get("shards_sha256")
    if recorded != sha256:
        raise UserError(
            f"{run} was trained on other shards (their SHA-256 is {recorded}, not {sha256})"
        )


def _toml_value(value: Any) -> Any:
    if value is None:
        return "null"
    return list(value) if isinstance(value, tuple) else value
