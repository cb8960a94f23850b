"""What lies beside an own part's file, a script's or a notebook's, is part of its identity."""

import importlib
import importlib.util
import itertools
import subprocess
import sys
import textwrap

import pytest

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
