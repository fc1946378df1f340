"""How a command-line job uses memory. Both calls change the whole process, so `import fastllm` makes neither."""

import ctypes
import gc
import sys

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
