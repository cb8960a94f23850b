"""What makes XLA quick on tiny programs, which spend their time being compiled."""

import mmap
import os
from pathlib import Path

import jaxlib

QUICK_FLAGS = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}
"""Options of the compiler that make it three times as quick on tiny programs."""


def _known(flag: str) -> bool:
    """Whether the installed compiler has an option; one it does not have would end the process."""
    for library in Path(str(jaxlib.__file__)).parent.glob("libjax_common*"):
        with library.open() as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return text.find(b"\0" + flag.encode() + b"\0") >= 0  # a retired one lives on inside other names
    return False


def xla_flags() -> str:
    """XLA_FLAGS of this process, and those that make it quick."""
    given = os.environ.get("XLA_FLAGS", "").split()
    quick = [f"--{name}={value}" for name, value in QUICK_FLAGS.items() if _known(name)]
    return " ".join([*given, *(flag for flag in quick if flag not in given)])
