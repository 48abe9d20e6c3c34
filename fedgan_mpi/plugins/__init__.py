"""Names of code in configurations: built-in names, installed entry points, and import strings.

An import string is `package.module:Name` or `path/to/file.py:Name`. It runs code, so a file that
comes from elsewhere must not choose it: `load` refuses import strings until the user has named them
in this process (`allow`). Built-ins and entry points are installed and need no permission.

Imports neither MPI nor torch.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from fedgan_mpi.errors import UserError
from fedgan_mpi.plugins.built_in import BUILT_IN, FILES, GROUPS, KEYS

T = TypeVar("T")

_allowed: set[str] = set()
_registered: dict[str, Any] = {}
_files: dict[Path, Any] = {}
_loaded: dict[str, list[tuple[str, str]]] = {}  # source file -> keys and names of its plug-ins


@dataclass(frozen=True)
class Plugin:
    """A name that a configuration may use, and its code."""

    group: str
    name: str
    target: str
    """Import string."""
    origin: str
    """`built in`, the distribution that installed it, `import string`, or `file`."""


def installed(group: str) -> list[Plugin]:
    """Return the built-in and installed members of a group, built-in ones first."""
    found = [Plugin(group, name, target, "built in") for name, target in BUILT_IN[group].items()]
    for entry in sorted(_entry_points(group), key=lambda entry: entry.name):
        if entry.name not in BUILT_IN[group]:
            origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "installed"
            found.append(Plugin(group, entry.name, entry.value, origin))
    return found


def find(key: str, name: str) -> Plugin:
    """Return the plug-in that a configuration value names; nothing is imported.

    key: the configuration key, for example `model.architecture`, or data_prep's argument. Raises
    UserError for a name that neither exists nor has the form of an import string.
    """
    group = GROUPS[key]
    if name in BUILT_IN[group]:  # the usual case, without a search for packages
        return Plugin(group, name, BUILT_IN[group][name], "built in")
    if is_file(key, name):
        return Plugin(group, name, name, "file")
    if ":" in name:
        return Plugin(group, name, name, "import string")
    names = [plugin.name for plugin in installed(group)]
    if name in names:
        return next(plugin for plugin in installed(group) if plugin.name == name)
    near = difflib.get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    file = f", or a file that ends in {', '.join(FILES[key])}" if key in FILES else ""
    raise UserError(
        f"{key} is {name!r}, but must be one of {', '.join(names)}, or an import string such as "
        f"package.module:Name or file.py:Name{file}{meant}"
    )


def is_built_in(key: str, name: str) -> bool:
    """Return whether a configuration value names code of this program."""
    return name in BUILT_IN[GROUPS[key]]


def is_file(key: str, name: str) -> bool:
    """Return whether a configuration value names a file of a network instead of Python code."""
    return name.endswith(FILES.get(key, ()))


def allow(names: Iterable[str]) -> None:
    """Permit import strings and files in this process, because the user has named them."""
    _allowed.update(names)


def named_in(values: Mapping[str, Any]) -> list[str]:
    """Return all names of code in a configuration. values: key -> value."""
    named = [values[key] for key in KEYS if values.get(key) is not None]
    return [name for each in named for name in ([each] if isinstance(each, str) else each)]


def allowed() -> set[str]:
    """Return what `allow` has permitted."""
    return set(_allowed)


def register(key: str, code: Any) -> str:
    """Permit an object of the caller, and return the import string by which it is recorded."""
    module = sys.modules.get(code.__module__)
    file = getattr(module, "__file__", None)
    where = file if code.__module__ == "__main__" and file else code.__module__
    name = f"{where}:{code.__qualname__}"
    _registered[name] = code
    allow([name])
    return name


def may_load(key: str, name: str) -> bool:
    """Return whether the code that a value names may run: installed, or named by the user."""
    return find(key, name).origin not in ("import string", "file") or name in _allowed


def check_permission(key: str, name: str) -> None:
    """Raise UserError if the code that a value names may not run."""
    if not may_load(key, name):
        how = f"add --{key} {name}"
        if key == "evaluation.metrics":
            how = "name the metrics with --metrics or, to train, with --evaluation.metrics"
        raise UserError(
            f"{key} is {name!r} in this run, which is code outside of the program, and a file "
            f"does not choose what code runs; if you trust it, {how}"
        )


def load(key: str, name: str) -> Any:
    """Import the code that a configuration value names.

    Raises UserError, with key and name, if it is not permitted or does not exist, or if its import
    fails.
    """
    plugin = find(key, name)
    if name in _registered:
        _remember(key, name, sys.modules.get(_registered[name].__module__))
        return _registered[name]
    check_permission(key, name)
    where, _, attribute = plugin.target.partition(":")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    except UserError as error:
        raise UserError(f"{key} is {name!r}, but {error}") from None
    except (Exception, SystemExit) as error:
        if plugin.origin == "built in":
            raise
        problem = " ".join(str(error).split())
        raise UserError(
            f"{key} is {name!r}, but importing {where} raised {type(error).__name__}: {problem}"
        ) from error
    code = module
    for part in attribute.split("."):
        if not hasattr(code, part):
            public = [n for n in vars(module) if not n.startswith("_")]
            near = difflib.get_close_matches(part, public, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{key} is {name!r}, but {where} has no {attribute or 'name'}{meant}")
        code = getattr(code, part)
    if plugin.origin != "built in":
        _remember(key, name, module)
    return code


def load_class(key: str, name: str, base: type[T]) -> type[T]:
    """Import the class that a configuration value names, a complete subclass of `base`.

    Raises UserError as `load` does, and for anything else.
    """
    code = load(key, name)
    if not (isinstance(code, type) and issubclass(code, base)):
        raise UserError(
            f"{key} has {name!r}, but that must be a subclass of {base.__module__}.{base.__name__}"
        )
    missing = sorted(getattr(code, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{key} has {name!r}, but {code.__name__} does not define {missing[0]}")
    return code


def describe(plugin: Plugin) -> str:
    """Return the first line of the docstring of a plug-in, or of its class, without running it.

    Empty if the source is not found.
    """
    import ast

    where, _, attribute = plugin.target.partition(":")
    attribute = attribute.partition(".")[0]
    try:
        body = ast.parse(_source_file(where).read_text(encoding="utf-8")).body
    except (ImportError, AttributeError, TypeError, OSError, ValueError, SyntaxError):
        return ""
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").split("\n")[0]
        if isinstance(node, ast.Assign) and [ast.unparse(to) for to in node.targets] == [attribute]:
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    return text.split("\n")[0]
    return ""


def _source_file(where: str) -> Path:
    """Return the file of a module, or of an import string's first part, without importing it."""
    if where.endswith(".py"):
        return Path(where)
    package, *below = where.split(".")
    specification = importlib.util.find_spec(package)  # of a submodule, it would run the package
    if not below:
        return Path(specification.origin)  # type: ignore
    path = Path(next(iter(specification.submodule_search_locations))).joinpath(*below)  # type: ignore
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def blame(error: BaseException) -> str | None:
    """Return a sentence that names the code outside of the program in which an error was raised.

    None if no such code was running.
    """
    sentence = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file in _loaded:  # the innermost one counts
            class_name = getattr(frame.f_code, "co_qualname", "").partition(".")[0]
            named = [each for each in _loaded[file] if each[1].endswith(f":{class_name}")]
            culprits = " or ".join(f"{key} {name!r}" for key, name in named or _loaded[file])
            sentence = f"This was raised in the code of {culprits}, {file} line {line}."
    return sentence


def _remember(key: str, name: str, module: Any) -> None:
    file = getattr(module, "__file__", None)
    if file is not None and (key, name) not in _loaded.setdefault(file, []):
        _loaded[file].append((key, name))


def _import_module(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (error.name == package or name.startswith(error.name)):
            raise UserError(f"there is no module {error.name}") from None
        raise


def _import_file(path: Path) -> Any:
    path = path.resolve()
    if path not in _files:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        # The same name in every process, because objects of its classes travel between processes.
        name = f"_fedgan_mpi_plugin_{zlib.crc32(str(path).encode()):08x}_{path.stem}"
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _files[path] = module
    return _files[path]


def _entry_points(group: str) -> Iterable[EntryPoint]:
    prefix = "data_prep" if group in ("sources", "partitions") else "fedgan_mpi"
    return entry_points(group=f"{prefix}.{group}")
