"""Where modules lie, imported or not, and what they and functions import."""

from __future__ import annotations

import ast
import dis
import importlib.util
import sys
import tokenize
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES, SourceFileLoader
from pathlib import Path
from typing import Any

from jcredit.files import digest_of

Import = tuple[int, str, tuple[str, ...]]
"""Dots in front, the module after them, and the names taken from it."""
INSTALLED = ("site-packages", "dist-packages")


def file_of(module: str) -> Path | None:
    """A module's file, whether it has been imported or not; None where it has none."""
    file = getattr(sys.modules[module], "__file__", None) if module in sys.modules else _unimported(module)
    return Path(file).resolve() if file else None


def _unimported(module: str) -> str | Path | None:
    """The file that a module would be imported from, without importing the packages that it is in."""
    outermost, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(outermost)
    except (ImportError, ValueError):  # made by hand
        return None
    if spec is None or not inner:
        return spec.origin if spec is not None and spec.has_location else None
    *packages, last = inner
    # In Python's order: what is compiled beside its source is imported first.
    suffixes = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)
    endings = [name + suffix for name in (f"{last}/__init__", last) for suffix in suffixes]
    for location in spec.submodule_search_locations or ():
        folder = Path(location, *packages)
        if found := next((folder / ending for ending in endings if (folder / ending).is_file()), None):
            return found
    return None


def file_digest(module: str, file: Path | None = None) -> tuple[Path, str] | None:
    """A module's file and its digest, now; None where it has none, as what is typed into an interpreter."""
    file = file or file_of(module)
    return (file, digest_of(file)) if file is not None and file.is_file() else None


def folder_of(module: str) -> Path | None:
    """Where a module's file lies, a notebook's is where it runs; None among installed packages, or without a file."""
    file = file_of(module)
    if file is None and module == "__main__":
        return Path.cwd()
    return None if file is None or file.parent.name in INSTALLED else file.parent


def root_of(module: str) -> Path | None:
    """The folder that a module's outermost package, or it itself, is found in; None for what is installed, for Python's
    own and for jcredit."""
    file, spec = file_of(module), getattr(sys.modules.get(module), "__spec__", None)
    if module == "__main__" and file is not None and spec is not None:
        module = spec.name  # of python -m
    outermost = module.partition(".")[0]
    if outermost == __name__.partition(".")[0] or outermost in sys.stdlib_module_names:
        return None
    if file is None:
        return Path.cwd() if module == "__main__" else None
    above = module.count(".") + (file.name == "__init__.py")
    root = file.parents[min(above, len(file.parents) - 1)]
    return None if root.name in INSTALLED else root


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of what is defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def as_in_its_file(function: types.FunctionType) -> bool:
    """Whether a function's file still has its code; True where there is no file, as for what is typed in."""
    own = function.__code__
    try:
        loader = SourceFileLoader(function.__module__, own.co_filename)
        text = loader.source_to_code(Path(own.co_filename).read_bytes(), own.co_filename)
    except OSError:
        return True
    except (SyntaxError, ValueError):
        return False
    return any(_alike(own, code) for code in codes(text))


def _alike(one: types.CodeType, other: types.CodeType) -> bool:
    """Whether two pieces of code are the same but for where they stand."""
    plain = lambda code: [(type(x), x) for x in code.co_consts if not isinstance(x, types.CodeType)]  # noqa: E731
    inner = lambda code: [x for x in code.co_consts if isinstance(x, types.CodeType)]  # noqa: E731
    names = [(x.co_qualname, x.co_code, x.co_names, x.co_varnames, plain(x), len(inner(x))) for x in (one, other)]
    return names[0] == names[1] and all(map(_alike, inner(one), inner(other)))


def imports_of(code: types.CodeType) -> Iterator[Import]:
    """What a function imports while it runs."""
    for part in codes(code):
        steps = [step for step in dis.get_instructions(part) if step.opname != "EXTENDED_ARG"]
        for level, names, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                yield level.argval, step.argval, names.argval or ()


def text_of(file: Path) -> str:
    """A module's text, in whatever encoding it says it has."""
    with tokenize.open(file) as text:
        return text.read()


def imports_in(file: Path) -> Iterator[Import]:
    """What a module's text imports, at its start or in its functions."""
    for node in ast.walk(ast.parse(text_of(file))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)


def dotted_imports(scope: Mapping[str, Any], used: Iterable[Any]) -> list[Import]:
    """Of what a module's text imports as ``package.module``, by whose name the package alone is known, what is used."""
    packages = tuple(f"{value.__name__}." for value in used if isinstance(value, types.ModuleType))
    file = Path(scope.get("__file__") or "")
    if not packages or file.suffix != ".py" or not file.is_file():
        return []
    return [found for found in imports_in(file) if not found[2] and found[1].startswith(packages)]
