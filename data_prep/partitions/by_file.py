"""The partition that a user defines by a CSV table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.partitions.base import Partition
from data_prep.sources.base import Indices, Source, name_file_in_errors
from data_prep.sources.bounded import MAX_BYTES, read_at_most
from fedgan_mpi.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ByFile(Partition):
    """Assign images to sites by a table. Devices are the sites in sorted order."""

    name = "by_file"
    sites: list[str]
    """Name of device 1, 2, … in the table."""
    holders: dict[str, str] = field(repr=False)
    """Site of each image."""
    file: str

    @staticmethod
    def read(
        map: Path = Path("devices.csv"), image_column: str = "image", device_column: str = "device"
    ) -> ByFile:
        """Read the table. Raises UserError if it is missing, lacks a column or contradicts itself.

        The parameters have the names of the command-line options.
        """
        holders: dict[str, str] = {}
        with name_file_in_errors(map, "a table"):
            text = read_at_most(map, MAX_BYTES).decode("utf-8-sig")
            rows = csv.DictReader(io.StringIO(text, newline=""))
            for column in (image_column, device_column):
                if column not in (rows.fieldnames or ()):
                    columns = ", ".join(rows.fieldnames or ["none"])
                    raise UserError(f"{map} has no column {column!r}; its columns are {columns}")
            for row in rows:
                image, site = row[image_column], row[device_column]
                if not site:
                    raise UserError(f"{map}, line {rows.line_num}: {image} has no device")
                if holders.setdefault(image, site) != site:
                    raise UserError(f"{map} gives {image} to both {holders[image]} and {site}")
        sites = set(holders.values())
        all_numbers = all(site.isdigit() for site in sites)
        order = sorted(sites, key=int) if all_numbers else sorted(sites)
        return ByFile(sites=order, holders=holders, file=str(map))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "file": self.file, "sites": self.sites}

    def devices(self, requested: int | None) -> int:
        if requested not in (None, len(self.sites)):
            raise UserError(f"--devices is {requested}, but {self.file} names {len(self.sites)}")
        return len(self.sites)

    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        keys = source.keys
        if unknown := self.holders.keys() - set(keys):
            raise UserError(
                f"{self.file} names {min(unknown)}, but {source.name} has no such image"
            )
        numbers = {site: number for number, site in enumerate(self.sites)}
        parts: list[list[int]] = [[] for _ in range(devices)]
        for index in train.tolist():
            if keys[index] not in self.holders:
                raise UserError(f"{self.file} has no row for image {keys[index]}; add its device")
            parts[numbers[self.holders[keys[index]]]].append(index)
        return [np.array(part, np.int64) for part in parts]
