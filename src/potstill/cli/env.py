"""The output of `potstill env`: versions and devices, for a bug report.

    >>> describe_environment()[0].startswith("potstill ")
    True

It names no key, path or user. Of the environment variables it says only which are set.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from typing import Final

import potstill
from potstill import models

# Variables that change what potstill does. A name with a `*` stands for all names that begin with it.
VARIABLES: Final = (
    *("POTSTILL_*", "HF_*", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "OPENAI_*"),
    *(
        "RANK",
        "WORLD_SIZE",
        "SLURM_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "PYTHONPATH",
        "XDG_CACHE_HOME",
        "NO_COLOR",
        "COLUMNS",
    ),
)


def describe_environment() -> list[str]:
    """One line for each fact: `name value`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows = {
        "potstill": potstill.__version__,
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, libc {platform.libc_ver()[1] or '-'}",
        "cpu": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
        "memory": f"{memory:.1f} GiB",
        "devices": ", ".join(models.describe_devices()),
        **_library_versions(),
        "variables set": ", ".join(_set_variables()) or "none",
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]


def _library_versions() -> dict[str, str]:
    """Library -> installed version, for all that potstill needs, and for those of its extras that are installed."""
    versions = {}
    for requirement in metadata.requires("potstill") or ():
        name, extra = (
            re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0],
            re.search(r"extra == ['\"]([^'\"]+)", requirement),
        )
        if name == "potstill" or (extra and extra[1] in ("test", "docs")):
            continue
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if extra is None:
                versions[name] = "not installed"
    return dict(sorted(versions.items()))


def _set_variables() -> list[str]:
    exact = {name for name in VARIABLES if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in VARIABLES if name.endswith("*"))
    return sorted(name for name in os.environ if name in exact or name.startswith(prefixes))
