"""How this process asks the system for memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_KEEP = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory instead of returning it to the system; True if that was possible.

    Every training step frees and allocates the same large tensors. By default glibc returns them to the system, and
    each page is zeroed and mapped again at its next first touch, which can cost more than the arithmetic done on it.
    This changes the whole process, so only command-line jobs call it, never `import fastllm`.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, _KEEP) and libc.mallopt(_M_TRIM_THRESHOLD, _KEEP))
    except (OSError, AttributeError):  # another C library
        return False
