"""The command `plugins`: the names that a configuration may use, and the origin of each."""

from __future__ import annotations

from fedgan_mpi.plugins import describe, installed
from fedgan_mpi.plugins.built_in import BUILT_IN, GROUPS


def print_plugins() -> None:
    """Print one line per built-in and installed name; none of their code is run."""
    keys = {group: key for key, group in GROUPS.items()}
    for group in BUILT_IN:
        print(f"{group}  ({keys[group]})")
        for plugin in installed(group):
            print(f"  {plugin.name:<16} {plugin.origin:<16} {describe(plugin)}".rstrip())
        print()
    print("Each of them also takes an import string: package.module:Name or file.py:Name.")
