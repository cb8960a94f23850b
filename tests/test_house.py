"""The house: imports go downwards only, and a name is one thing."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jcredit

PACKAGE = Path(jcredit.__file__).parent
ROOMS = ("report", "sweeps", "study")


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_by(name, path):
    """Modules of jcredit that a module imports, at its top or inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield from (found for found in [inner if inner in MODULES else base] if found in MODULES)


IMPORTS = {name: set(imported_by(name, path)) for name, path in MODULES.items()}


def room(name):
    inner = name.split(".")[1:2]
    return inner[0] if inner and inner[0] in ROOMS else "files" if inner == ["files"] else "science"


def test_the_graph_is_seen():
    assert {"jcredit.types", "jcredit.parts"} <= IMPORTS["jcredit.networks.dense"]
    assert "jcredit.study.experiment" in IMPORTS["jcredit.__main__"] and len(IMPORTS) > 30


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize(
    ("who", "whom"),
    [
        ("files", {"files"}),
        ("science", {"science", "files"}),
        ("report", {"report", "files"}),
        ("sweeps", {"sweeps", "report", "science", "files"}),
        ("study", {"study", "sweeps", "report", "science", "files"}),
    ],
)
def test_imports_go_downwards(who, whom):
    top = ("jcredit", "jcredit.__main__")  # the door, and the command over all rooms
    upwards = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items() if room(name) == who and name not in top
        for other in others if room(other) not in whom or other in top
    ]  # fmt: skip
    assert not upwards


def exported(package):
    """The names a package's ``__init__`` (or its stub, where it loads lazily) gives."""
    folder = MODULES[package].parent
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else folder / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, node.module) for alias in node.names)


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_no_module_is_hidden_by_a_name_of_its_package(package):
    for name, source in exported(package):
        if source:  # else a module itself
            assert f"{package}.{name}" not in MODULES, f"{name} is a module of {package} and a name in it"


def test_every_module_can_be_imported_by_its_name():
    names = [name for name in MODULES if not name.endswith("__main__")]
    code = f"import importlib\nassert all(type(importlib.import_module(n)).__name__ == 'module' for n in {names})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_in_the_library_looks_above_its_own_folder():
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert '.parent / "experiments"' not in text and "../" not in text, name
