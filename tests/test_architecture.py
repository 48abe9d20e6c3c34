"""The layers of the packages: which may import which, and how long files and folders may be.

Imports are read from the source, including imports inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors"},
    {"callbacks", "files", "log", "plugins", "random_streams"},
    {"schema"},
    {"config"},
    {"hardware"},
    {"faults"},
    {"comm", "data", "nn"},
    {"wireless"},
    {"federation"},
    {"run"},
    {"callbacks"},
    {"checkpoint", "trackers"},
    {"algorithms", "evaluation"},
    {"data_prep", "report"},
    {"score", "training"},
    {"cli"},
    {"__init__", "__main__"},
    {"testing"},
]
"""Lowest first. A package imports itself and packages of lower layers, no others of its layer."""
FORBIDDEN = {
    "wireless": {"hardware", "faults", "comm", "data"},
    "data": {"faults"},
    "run": {"comm", "faults", "wireless", "federation"},
}
"""Packages of lower layers that a package must not import either."""
LAZY = {"testing": {"algorithms", "training", "cli", "__main__"}}
"""Packages that a package imports inside functions only."""
MAX_LOOSE_FILES = 7
"""Python files directly in fedgan_mpi/."""
MAX_LINES = {"fedgan_mpi": 300, "data_prep": 300, "benchmarks": 300, "tests": 350}
"""Folder -> lines of a file."""


class Import(NamedTuple):
    """One imported module of this project."""

    file: Path
    line: int
    module: str
    """Full name, as in `fedgan_mpi.comm.link`."""
    is_lazy: bool
    """Whether it is inside a function, or in a block that imports do not execute."""

    @property
    def source(self) -> str:
        return package_of(module_name(self.file))

    @property
    def target(self) -> str:
        return package_of(self.module)

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """Return the part of fedgan_mpi to which a module belongs, or data_prep."""
    top, _, rest = module.partition(".")
    return top if top == "data_prep" else rest.partition(".")[0] or "__init__"


@cache
def files_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def imports_of(folder: str) -> list[Import]:
    """Return the imports of fedgan_mpi and data_prep in all files of a folder."""
    return [each for file in files_of(folder) for each in read_imports(file)]


def read_imports(file: Path) -> Iterator[Import]:
    def visit(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for module in imported_modules(child):
                    if module.split(".")[0] in ("fedgan_mpi", "data_prep"):
                        yield Import(file, child.lineno, module, is_lazy)
            else:
                block = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.If
                yield from visit(child, is_lazy or isinstance(child, block))

    yield from visit(ast.parse(file.read_text()), is_lazy=False)


def imported_modules(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield full names. `from package import name` names a module if there is such a file."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    assert statement.level == 0, "relative import"
    assert statement.module is not None
    for alias in statement.names:
        path = ROOT.joinpath(*statement.module.split("."), alias.name)
        is_module = path.is_dir() or path.with_suffix(".py").exists()
        yield f"{statement.module}.{alias.name}" if is_module else statement.module


def check(offenders: list[Import] | list[str], rule: str) -> None:
    assert not offenders, f"{rule}:\n" + "\n".join(map(str, offenders))


def test_every_package_has_a_layer():
    packages = {package_of(module_name(file)) for file in files_of("fedgan_mpi")}
    check(sorted(packages - set().union(*LAYERS)), "not in LAYERS")


def test_packages_import_lower_layers_only():
    layer = {package: number for number, layer in enumerate(LAYERS) for package in layer}
    offenders = [
        each
        for each in [*imports_of("fedgan_mpi"), *imports_of("data_prep")]
        if each.source != each.target
        # `from fedgan_mpi import __version__` needs no other module.
        and each.module != "fedgan_mpi"
        and layer.get(each.target, 0) >= layer.get(each.source, len(LAYERS))
    ]
    check(offenders, "a package imports its own or a higher layer")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_does_not_import_others(package):
    offenders = [
        each
        for each in imports_of("fedgan_mpi")
        if each.source == package and each.target in FORBIDDEN[package]
    ]
    check(offenders, f"{package} does not import {', '.join(sorted(FORBIDDEN[package]))}")


@pytest.mark.parametrize("package", LAZY)
def test_some_imports_are_lazy(package):
    offenders = [
        each
        for each in imports_of("fedgan_mpi")
        if each.source == package and each.target in LAZY[package] and not each.is_lazy
    ]
    check(offenders, f"{package} imports these inside functions only")


def test_no_modules_import_each_other():
    """Also within a package. Imports under TYPE_CHECKING count."""
    graph: dict[str, set[str]] = {}
    for each in [*imports_of("fedgan_mpi"), *imports_of("data_prep")]:
        graph.setdefault(module_name(each.file), set()).add(each.module)
    graph.pop("fedgan_mpi")  # its public names are lazy imports
    check(find_cycles(graph), "circular imports")


def find_cycles(graph: dict[str, set[str]]) -> list[str]:
    """Return one circle for each module that closes one, in a depth-first search."""
    cycles, finished = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            cycles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in finished:
            for target in sorted(graph.get(module, ())):
                visit(target, [*path, module])
            finished.add(module)

    for module in sorted(graph):
        visit(module, [])
    return cycles


def test_benchmarks_do_not_import_tests():
    test_modules = {file.stem for file in files_of("tests")}
    offenders = [
        f"{file.relative_to(ROOT)}:{node.lineno} imports {module}"
        for file in files_of("benchmarks")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in imported_modules(node)
        if module.split(".")[0] in test_modules
    ]
    check(offenders, "benchmarks import fedgan_mpi.testing, not tests")


def test_few_files_are_loose():
    loose = sorted(path.name for path in (ROOT / "fedgan_mpi").glob("*.py"))
    assert len(loose) <= MAX_LOOSE_FILES, loose


@pytest.mark.parametrize("folder", MAX_LINES)
def test_files_are_short(folder):
    lines = {file: len(file.read_text().splitlines()) for file in files_of(folder)}
    offenders = [
        f"{file.relative_to(ROOT)} has {count} lines"
        for file, count in lines.items()
        if count > MAX_LINES[folder]
    ]
    check(offenders, f"a file in {folder} has at most {MAX_LINES[folder]} lines")
