"""What identifies a function that was written elsewhere: its source, and everything of its author's that it uses."""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import dis
import functools
import hashlib
import importlib.util
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jcredit.files import digest_of
from jcredit.modules import Import, codes, dotted_imports, file_of, folder_of, imports_in, imports_of, root_of, text_of
from jcredit.settings import ConfigError, brief

_PLAIN = int | float | complex | str | bytes | None | slice | range | np.generic | np.dtype | types.EllipsisType


def array_digest(arrays: Iterable[Any]) -> str:
    """Sixteen hexadecimal digits over the dtypes, shapes and bytes of arrays, JAX's typed keys among them."""
    sha = hashlib.sha256()
    for given in arrays:
        is_key = isinstance(given, jax.Array) and jnp.issubdtype(given.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(given) if is_key else given)
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def source_hash(function: Callable) -> str:
    """Twelve hexadecimal digits over a function's source and what it uses, the same in every process.

    Followed are the functions, classes and values of its own module and of its neighbours, and what it closes over; a
    neighbour which it uses as such, or imports where it runs, counts with its whole text and with what neighbours it
    imports.  Neighbours lie in the same folder, or are found from where its own module is: in its package, or in
    packages beside it; of what is installed, in the same folder alone.  What comes from elsewhere is known by its name;
    an object of a class made elsewhere by what pickle would make it from.

    Raises:
      ConfigError: a value that nothing tells from another, such as a lock or an open file.
    """
    return hashlib.sha256(repr(_Identity(function.__module__).of(function)).encode()).hexdigest()[:12]


class _Identity:
    """What identifies values, as nested lists of text; ``home`` is the module whose code is followed."""

    def __init__(self, home: str):
        self.home, self.folder, self.root = home, folder_of(home), root_of(home)
        self.met: dict[int, str] = {}  # functions, classes and objects already told, by id
        self.kept: list[Any] = []  # those objects, so that no other takes the id of one
        self.modules: set[Path] = set()  # files of modules already told

    def of(self, value: Any) -> Any:
        """The identity of any value."""
        if isinstance(value, jax.custom_jvp | jax.custom_vjp):
            return [self.of(getattr(value, name, None)) for name in ("fun", "jvp", "fwd", "bwd")]
        is_own = self._is_ours(type(value).__module__)
        if not is_own:
            value = _unwrapped(value.__func__ if isinstance(value, classmethod) else value)
        if _is_code(value):
            return self._code(value)
        if (held := self._held(value)) is None:
            return self._object(value)
        return [self.of(type(value)), held, self._attributes(value)] if is_own else held

    def _held(self, value: Any) -> Any:
        """What numbers, text, arrays and collections hold; None for other objects."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, Tracer):
            raise ConfigError(
                f"what identifies a run cannot be told of a traced array of shape {value.shape}, which was kept in a"
                " global, a default or a closure when a function was traced; keep it in the estimator's state"
            )
        if isinstance(value, np.ndarray | jax.Array):
            is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            return array_digest([jax.random.key_data(value) if is_key else value])
        if isinstance(value, Mapping):
            return [[self.of(key), self.of(item)] for key, item in value.items()]
        if isinstance(value, set | frozenset):
            return sorted(map(self.of, value), key=repr)
        if isinstance(value, tuple | list):
            return [type(value).__name__, *map(self.of, value)]
        return None

    def _named(self, values: Mapping[str, Any]) -> list[Any]:
        """Values that are known by their names, in whatever order they were named."""
        return sorted(([self.of(name), self.of(value)] for name, value in values.items()), key=repr)

    def _attributes(self, value: Any) -> list[Any]:
        """What an object has been given, without what it has computed and keeps."""
        computed = {name for name, value in _members(type(value)) if isinstance(value, functools.cached_property)}
        return self._named(
            {name: held for name, held in getattr(value, "__dict__", {}).items() if name not in computed}
        )

    def _object(self, value: Any) -> Any:
        is_own = self._is_ours(type(value).__module__)
        if isinstance(value, types.ModuleType) and self._is_ours(value.__name__):
            return self._module(value.__name__)
        if isinstance(value, functools.partial):
            return [self.of(value.func), self.of(value.args), self._named(value.keywords)]
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, property):
            return [self.of(value.fget), self.of(value.fset)]
        if isinstance(value, functools.cached_property):
            return self.of(value.func)
        if isinstance(value, np.vectorize):  # it has its function's name
            return [self.of(part) for part in (value.pyfunc, value.otypes, value.signature, value.excluded)]
        if hasattr(value, "factory") and hasattr(value, "settings"):  # a part
            return [self.of(value.factory), self._named(value.settings)]
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        if isinstance(name, str) and not is_own:  # a module, or built in
            bound = getattr(value, "__self__", None) if isinstance(value, types.BuiltinMethodType) else None
            at = [] if bound is None or isinstance(bound, types.ModuleType | type) else [self.of(bound)]
            return [f"{value.__module__}.{name}", *at] if at else f"{getattr(value, '__module__', '')}.{name}"
        if dataclasses.is_dataclass(value):
            return [
                self.of(type(value)),
                {f.name: self.of(getattr(value, f.name, None)) for f in dataclasses.fields(value)},
            ]
        if id(value) in self.met:
            return self.met[id(value)]
        self.met[id(value)] = f"{type(value).__qualname__} #{len(self.met)}"
        self.kept.append(value)
        if is_own and hasattr(value, "__dict__"):
            return [self.of(type(value)), self._attributes(value)]
        return self._rebuilt(value)

    def _rebuilt(self, value: Any) -> Any:
        """An object, by how pickle would make it anew."""
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            made = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception as error:  # whatever an object says that no copy of it can be made
            raise ConfigError(
                f"what identifies a run cannot be told of {brief(value)}, a {type(value).__module__}"
                f".{type(value).__qualname__} that {self.home} uses ({error}); make it a setting, or numbers and arrays"
            ) from None
        if isinstance(made, str):
            return [self.of(type(value)), made]
        # How it is called, what with, its state, and what its lists and mappings hold, which come as iterators.
        parts: list[Any] = [list(part) if isinstance(part, Iterator) else part for part in made]
        return [self._named(part) if type(part) is dict else self.of(part) for part in parts]

    def _is_ours(self, module: str) -> bool:
        if module == self.home:
            return True
        near = self.folder is not None and folder_of(module) == self.folder
        return near or (self.root is not None and root_of(module) == self.root)

    def _module(self, name: str) -> Any:
        """A neighbour of the home, by its text and those of its neighbours that it imports."""
        file = file_of(name)
        if file is None or file in self.modules:
            return name
        self.modules.add(file)
        if file.suffix != ".py":  # compiled
            return [name, digest_of(file)]
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        return [name, text_of(file), self._imported(imports_in(file), package)]

    def _imported(self, imports: Iterable[Import], package: str) -> list[Any]:
        """The home's neighbours among imports; a name taken from a package may be one, too."""
        found = []
        for level, module, names in imports:
            with contextlib.suppress(ImportError):  # relative, and of no package
                absolute = importlib.util.resolve_name("." * level + module, package)
                found += [absolute, *(f"{absolute}.{name}" for name in names)]
        return [self._module(name) for name in dict.fromkeys(found) if self._is_ours(name)]

    def _code(self, thing: Any) -> Any:
        """A function or class: by source if it is of the home or no name leads to it."""
        name = f"{thing.__module__}.{thing.__qualname__}"
        # A wrapper has the name and module of what it wraps.
        written = thing.__globals__.get("__name__") if inspect.isfunction(thing) else None
        at_home = any(self._is_ours(module) for module in (thing.__module__, written) if module)
        if not at_home and "<" not in name and _leads_to(thing):
            return name
        if id(thing) in self.met:
            return self.met[id(thing)]
        self.met[id(thing)] = f"{name} #{len(self.met)}"
        if inspect.isclass(thing):
            inside = {  # but for what abc keeps there, which is no part of what was written
                k: v for k, v in vars(thing).items()
                if k != "_abc_impl" and (inspect.isfunction(v) or not k.startswith("__"))
            }  # fmt: skip
            return [name, _source(thing), self.of(thing.__bases__), self._named(inside)]
        used = dict(_closed_over(thing)) | (dict(_globals_of(thing)) if at_home else {})
        package = thing.__globals__.get("__package__") or ""
        imports = [*imports_of(thing.__code__), *dotted_imports(thing.__globals__, used.values())] if at_home else []
        imported = self._imported(imports, package)
        keywords = thing.__kwdefaults__ and self._named(thing.__kwdefaults__)
        told = [name, _source(thing), self.of(thing.__defaults__), keywords or repr(keywords), self._named(used)]
        return told + ([imported] if imported else [])


def _is_code(value: Any) -> bool:
    return inspect.isfunction(value) or inspect.isclass(value)


def _unwrapped(value: Any) -> Any:
    """The function inside a factory or a compiled function."""
    while callable(value) and not _is_code(value) and hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return value


def _leads_to(thing: Any) -> bool:
    """Whether its name is its alone: what a transformation or a decorator makes of a function has its name as well."""
    found = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return thing is _unwrapped(getattr(found, "__func__", found))


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class and its bases define."""
    return itertools.chain.from_iterable(vars(base).items() for base in kind.__mro__)


def _source(thing: Any) -> str:
    function = inspect.isfunction(thing)
    try:
        text = inspect.getsource(thing.__code__ if function else thing)
    except (OSError, TypeError):  # typed into an interpreter, or generated
        text = ""
    told = text and getattr(thing, "__name__", "") != "<lambda>"  # of several lambdas in a line each has the whole line
    return text if told or not function else text + repr([_bytecode(code) for code in codes(thing.__code__)])


def _bytecode(code: types.CodeType) -> list[Any]:
    constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    ordered = [sorted(c, key=repr) if isinstance(c, frozenset) else c for c in constants]
    return [code.co_code.hex(), ordered, code.co_names]


def _globals_of(function: Any) -> Iterator[tuple[str, Any]]:
    for code in codes(function.__code__):
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                yield step.argval, function.__globals__[step.argval]


def _closed_over(function: Any) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not yet filled
            continue
