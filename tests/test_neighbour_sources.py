"""What lies beside an own part's file, a script's or a notebook's, is part of its identity."""

import importlib
import importlib.machinery
import importlib.util
import itertools
import subprocess
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from jcredit.modules import file_of
from jcredit.sources import _Identity

COUNT = itertools.count()

NEIGHBOUR = """
import jcredit as jc
import {module}
from {module} import factor

def late():
    from {module}_late import factor
    return factor()

@jc.estimator
def own() -> jc.Estimator:
    inner = jc.broadcast().build()
    return inner._replace(credit=lambda *args: {use} * inner.credit(*args))
"""


@pytest.mark.parametrize("edited", ["", "_deep", "_late"])
@pytest.mark.parametrize("use", ["factor()", "{module}.factor()", "late()"])
def test_modules_of_the_same_folder_are_followed(tmp_path, monkeypatch, use, edited):
    def source(number, value):
        name, folder = f"neighbour_{next(COUNT)}", tmp_path / f"{number}"
        folder.mkdir()
        helpers = {
            "": f"import {name}_deep\n\ndef factor():\n    return 1 * {name}_deep.factor()\n",
            "_deep": "def factor():\n    return 1\n",
            "_late": f"from {name}_deep import factor as other\n\ndef factor():\n    return 1 * other()\n",
        }
        helpers[edited] = helpers[edited].replace("return 1", f"return {value}")
        for ending, text in helpers.items():
            (folder / f"{name}{ending}.py").write_text(text)
        (folder / f"{name}_user.py").write_text(NEIGHBOUR.format(module=name, use=use.format(module=name)))
        monkeypatch.syspath_prepend(str(folder))
        own = importlib.import_module(f"{name}_user").own
        told = repr(_Identity(f"{name}_user").of(own))
        importlib.import_module(f"{name}_late")  # whether it has been imported or not
        assert told == repr(_Identity(f"{name}_user").of(own))
        return told.replace(name, "NAME")

    one, same, other = (source(i, n) for i, n in enumerate((1, 1, 2)))
    used = edited == "_deep" or (edited == "_late") == (use == "late()")
    assert one == same and (one != other) == used


PACKAGED = {
    "a package beside it": ("{name}_user", "from {name}.deep.ops import factor", "factor()"),
    "as a module": ("{name}_user", "import {name}.deep.ops", "{name}.deep.ops.factor()"),
    "where it runs": (
        "{name}_user",
        "def factor():\n    from {name}.deep.ops import factor as found\n    return found()",
        "factor()",
    ),
    "of folders that are no packages": (
        "{name}_user", "def factor():\n    from {name}_ns.deep import ops\n    return ops.factor()", "factor()",
    ),
    "elsewhere in its own package": ("{name}.mine.user", "from ..deep.ops import factor", "factor()"),
}  # fmt: skip


@pytest.mark.parametrize("case", PACKAGED)
def test_packages_beside_it_and_its_own_are_followed(tmp_path, monkeypatch, case):
    def source(number, value):
        name, folder = f"packaged_{next(COUNT)}", tmp_path / f"{number}"
        user, imports, use = (text.format(name=name) for text in PACKAGED[case])
        body = NEIGHBOUR.partition("@jc")[2].format(use=use)
        files = {
            f"{name}/__init__.py": "", f"{name}/deep/__init__.py": "", f"{name}/mine/__init__.py": "",
            f"{name}/deep/ops.py": "from .more import one\n\ndef factor():\n    return one()\n",
            f"{name}/deep/more.py": f"def one():\n    return {value}\n",
            f"{name}_ns/deep/ops.py": f"def factor():\n    return {value}\n",
            "factor.py": "who is never imported",
            f"{user.replace('.', '/')}.py": f"import jcredit as jc\n{imports}\n\n@jc{body}",
        }  # fmt: skip
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        own = importlib.import_module(user).own
        told = repr(_Identity(user).of(own))
        for module in (f"{name}.deep.ops", f"{name}_ns.deep.ops"):  # whether it has been imported or not
            importlib.import_module(module)
        assert told == repr(_Identity(user).of(own))
        return told.replace(name, "NAME")

    one, same, other = (source(i, n) for i, n in enumerate((1, 1, 2)))
    assert one == same != other


def test_a_module_that_is_run_as_one_of_its_package_has_neighbours_there(tmp_path):
    (tmp_path / "pkg/deep").mkdir(parents=True)
    (tmp_path / "pkg/__init__.py").write_text("")
    # With a mark of its bytes' order in front, as some editors write it.
    (tmp_path / "pkg/run.py").write_text(
        "\ufeffimport jax.numpy as jnp\nimport jcredit.sources\nfrom pkg.deep.ops import factor\n\n"
        "def own():\n    return jnp.zeros(factor())\n\nprint(jcredit.sources.source_hash(own))\n",
        encoding="utf-8",
    )

    def told(value):
        (tmp_path / "pkg/deep/ops.py").write_text(f"def factor():\n    return {value}\n")
        command = [sys.executable, "-B", "-m", "pkg.run"]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert told(1) != told(2)


def test_a_compiled_module_of_the_same_folder_counts_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    native = tmp_path / f"native_{next(COUNT)}.so"
    text = f"def credit():\n    import {native.stem}\n    return {native.stem}\n"
    (tmp_path / f"{native.stem}_user.py").write_text(text)
    user = importlib.import_module(f"{native.stem}_user")

    def told(content):
        native.write_bytes(content)
        importlib.invalidate_caches()
        return repr(_Identity(user.__name__).of(user.credit))

    assert told(b"\xff\x00") == told(b"\xff\x00") != told(b"\xff\x01")


def test_of_a_source_and_what_it_was_compiled_to_the_latter_is_what_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / f"built_{next(COUNT)}"
    package.mkdir()
    native = package / f"ops{EXTENSION_SUFFIXES[0]}"
    for file in (package / "__init__.py", package / "ops.py", native):
        file.write_bytes(b"")
    found = importlib.machinery.PathFinder.find_spec("ops", [str(package)])
    assert file_of(f"{package.name}.ops") == native == Path(found.origin)


def test_a_notebooks_neighbours_are_followed(tmp_path):
    program = """
        import jcredit as jc
        from neighbour import scaled

        @jc.estimator
        def mine() -> jc.Estimator:
            inner = jc.broadcast().build()
            return inner._replace(credit=lambda *args: scaled(inner.credit(*args)))

        print(mine.source)
    """

    def told(factor):
        (tmp_path / "neighbour.py").write_text(f"FACTOR = {factor}\ndef scaled(a):\n    return FACTOR * a\n")
        command = [sys.executable, "-B", "-c", textwrap.dedent(program)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert told(2) == told(2) != told(3)
