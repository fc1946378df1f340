"""How a command-line job uses memory, and how much there is.

keep_freed_memory and spare_long_lived_objects change the whole process, so `import fastllm` calls neither.
"""

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_KEEP = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory instead of returning it to the system; True if that was possible.

    Every training step frees and allocates the same large tensors. By default glibc returns them to the system, and
    each page is zeroed and mapped again at its next first touch, which can cost more than the arithmetic done on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, _KEEP) and libc.mallopt(_M_TRIM_THRESHOLD, _KEEP))
    except (OSError, AttributeError):  # another C library
        return False


def spare_long_lived_objects() -> None:
    """Take what exists now out of the garbage collector's sight.

    A loop that makes and drops tensors sets off full collections, each of which walks everything that torch's import
    left behind: measured as 8% of a small GPT's training steps.
    """
    gc.collect()
    gc.freeze()


def total_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process could have: the machine's, or what its container may take of them.

    None where the system does not tell.

    Args:
        root: where /proc and /sys are.
    """
    sizes = [size for path in _control_groups(root) if (size := _number(path)) is not None]
    with suppress(AttributeError, ValueError, OSError):  # no such thing on Windows
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(sizes, default=None)


def _control_groups(root: Path) -> list[Path]:
    """Return the files that may limit this process's group and those around it, of control groups of either version.

    In a container the group's own path is often not to be seen, and what is mounted is the group itself.
    """
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = Path(group.lstrip("/"))
        files += [top / folder / name for folder in (own, *own.parents)]
    return files


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such group; or "max", which is no limit
        return None
