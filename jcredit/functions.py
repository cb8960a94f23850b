"""Functions by name: what a run's identity has of them, and how other processes find them.

Those of jcredit are known by their names alone, anybody else's by their source too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from jcredit.modules import file_digest
from jcredit.settings import ConfigError
from jcredit.sources import source_hash


class Function:
    """A function that enters the identity of runs.

    Attributes:
      kind: what it is to them, in one word.
      function: the function itself.
    """

    def __init__(self, kind: str, function: Callable):
        functools.update_wrapper(self, function)
        self.kind, self.function = kind, function
        self._file = None if self._is_ours else file_digest(function.__module__)

    @property
    def name(self) -> str:
        """The function's name for jcredit's own, with its module in front for anybody else's."""
        function = self.function
        return function.__name__ if self._is_ours else f"{function.__module__}.{function.__qualname__}"

    @property
    def _is_ours(self) -> bool:
        return self.function.__module__.split(".")[0] == __name__.split(".")[0]

    @functools.cached_property
    def source(self) -> str | None:
        """Hash of an own function's source and of what it uses of its module; None for jcredit's own.

        Raises:
          ConfigError: its file, which is read for this, was edited after it had been imported.
        """
        if self._is_ours:
            return None
        if self._file is not None and self._is_edited:
            raise ConfigError(f"{self.name}: {self._file[0]} was edited since it was imported; start again")
        return source_hash(self.function)

    @property
    def _is_edited(self) -> bool:
        return self._file is not None and file_digest(self.function.__module__, self._file[0]) != self._file

    def look_again(self) -> None:
        """Has ``source`` made anew when it is next asked for: what it uses may have been changed in this process."""
        if not self._is_edited:
            self.__dict__.pop("source", None)

    def identity(self) -> dict[str, Any]:
        """Plain JSON values that identify it: its name under its kind, and its source if it is not jcredit's.

        Raises:
          ConfigError: as for ``source``.
        """
        return {self.kind: self.name} | ({} if self.source is None else {"source": self.source})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    def __deepcopy__(self, memo: dict) -> Self:
        """Itself: a function is not changed."""
        return self

    def __reduce__(self) -> tuple[Callable, tuple]:
        """By its name, for other processes, which import its module: from the folder it has here, if need be.

        Raises:
          ConfigError: no other process finds it: it is of ``__main__``, or made inside a function.
        """
        module, name = self.function.__module__, self.function.__qualname__
        loaded = sys.modules.get(module)
        if module == "__main__" or getattr(loaded, name, None) not in (self, self.function):
            where = "the script that runs" if module == "__main__" else f"{module}, inside something else"
            raise ConfigError(
                f"{self.kind} {name} is defined in {where}, where other processes do not find it; move it to the top of"
                " a module and import it"
            )
        top = sys.modules[module.partition(".")[0]]
        found = getattr(top, "__file__", None)
        folder = str(Path(found).resolve().parents[1 if hasattr(top, "__path__") else 0]) if found else None
        return _named, (self.kind, module, name, None if self.source is None else folder, self.source)


def _named(kind: str, module: str, name: str, folder: str | None, source: str | None) -> Function:
    """The function that another process has sent by its name, as its module has it: a factory, or plain.

    Raises:
      ConfigError: it is not found, or another one than that process had.
    """
    try:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError:
            if folder is None or folder in sys.path:
                raise
            sys.path.append(folder)
            loaded = importlib.import_module(module)
    except Exception as error:  # whatever a user's module does
        raise ConfigError(
            f"{kind} {name}: module {module!r} cannot be imported on {socket.gethostname()}"
            f" ({type(error).__name__}: {error}); put its folder {folder} on the PYTHONPATH there"
        ) from None
    found = getattr(loaded, name, None)
    found = Function(kind, found) if inspect.isfunction(found) else found
    if not isinstance(found, Function) or found.kind != kind or found.source != source:
        raise ConfigError(
            f"{kind} {name} of {getattr(loaded, '__file__', module)} on {socket.gethostname()} is not the one that was"
            " sent; give all processes the same file, and start them again after an edit"
        )
    return found
