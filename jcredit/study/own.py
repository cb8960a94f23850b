"""Estimators and rules of one's own, named as text: ``MODULE:FACTORY``, ``"MODULE:FACTORY(setting=value)"``."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from typing import Any, NamedTuple, TypeGuard

from jcredit.parts import Factory, Part
from jcredit.settings import ConfigError, known

FIELDS = {"estimator": "credit", "rule": "rule"}
"""What a command line can name, and the field of ``Config`` that it goes into."""


class Own(NamedTuple):
    """What was asked for by ``--<kind> <spec>``."""

    kind: str
    spec: str

    def __str__(self) -> str:
        return f"--{self.kind} {self.spec!r}"


def own_part(own: Own) -> tuple[str, Part]:
    """The label and the part that a text on the command line stands for; the current directory is importable.

    Settings are Python literals; nothing is evaluated.

    Raises:
      ConfigError: no such module or factory, a factory of something else, or a bad setting.
    """
    module_name, _, call = (text.strip() for text in own.spec.partition(":"))
    try:
        if not module_name or not call:
            raise ConfigError('give MODULE:FACTORY, or "MODULE:FACTORY(setting=value)"')
        name, args, settings = _parsed(call)
        part = _factory(own.kind, module_name, name)(*args, **settings)
        _try_to_build(part)
    except ConfigError as error:
        raise ConfigError(f"{own}: {error}") from error
    return call, part


def _parsed(call: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and named settings of ``name`` or ``name(literals)``."""
    try:
        node = ast.parse(call, mode="eval").body
        args, keywords = (node.args, node.keywords) if isinstance(node, ast.Call) else ([], [])
        function = node.func if isinstance(node, ast.Call) else node
        if not isinstance(function, ast.Name) or any(k.arg is None for k in keywords):
            raise ValueError
        return (
            function.id,
            [ast.literal_eval(arg) for arg in args],
            {str(k.arg): ast.literal_eval(k.value) for k in keywords},
        )
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{call!r} must be a factory's name, or one with literals: factory(rank=8, how='x')"
        ) from error


def _factory(kind: str, module_name: str, name: str) -> Factory:
    if "/" in module_name or module_name.endswith(".py"):
        raise ConfigError(
            f"{module_name!r} is a file; give its module's name, from the folder it lies in or with that on PYTHONPATH"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does
        raise ConfigError(f"module {module_name!r} cannot be imported ({type(error).__name__}: {error})") from error
    factory = getattr(module, name, None)
    if factory is None:
        known(f"{module_name}:", name, [n for n in dir(module) if _makes(getattr(module, n, None), kind)])
    if not _makes(factory, kind):
        what = f"{a(factory.kind)}'s factory" if isinstance(factory, Factory) else a(type(factory).__name__)
        raise ConfigError(f"{name} is {what}, not {a(kind)}'s; declare it with @jc.{kind}")
    return factory


def _makes(value: Any, kind: str) -> TypeGuard[Factory]:
    return isinstance(value, Factory) and value.kind == kind


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _try_to_build(part: Part) -> None:
    try:
        part.build()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{part!r} cannot be built ({type(error).__name__}: {error})") from error
