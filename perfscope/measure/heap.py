"""What glibc's malloc does with the memory that a step frees on a CPU: reads its thresholds, and changes them for a while.

malloc gives the free end of its heap back to the kernel above TRIM_THRESHOLD, and maps blocks from MMAP_THRESHOLD on anew each
time (mallopt(3)). Both move by themselves, until somebody sets one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from functools import lru_cache
from typing import Callable

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4       # malloc.h
LEAST, LARGEST = 128 << 10, 32 << 20                        # between which glibc moves MMAP_THRESHOLD by itself
KEEP = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}             # no memory is given back, no block is mapped
SET_THP_DISABLE, GET_THP_DISABLE = 41, 42                   # prctl.h: no transparent huge pages for this process
MAPPED = 2                                                  # in the word before a block: it was mapped on its own
OTHERS = ("jemalloc", "tcmalloc", "mimalloc")
_ACTIVE: list[dict[int, int]] = []                          # settings that are in force, the innermost last


def listens() -> bool:
    """Whether malloc is glibc's, which mallopt speaks to."""
    return platform.libc_ver()[0] == "glibc" and not any(name in os.environ.get("LD_PRELOAD", "") for name in OTHERS)


def libc() -> ctypes.CDLL:
    """The C library of this process, with the types of malloc and free."""
    found = ctypes.CDLL(None)
    found.malloc.restype, found.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    found.free.argtypes = [ctypes.c_void_p]
    return found


def is_mapped(block: int) -> bool:
    """Whether a block of glibc's malloc was mapped on its own."""
    return bool(ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value & MAPPED)


@lru_cache
def usual() -> dict[int, int]:
    """What glibc's own rule has come to in this process, in bytes: MMAP_THRESHOLD is the size of the largest mapped block that was
    freed, TRIM_THRESHOLD twice that. From here on they stay as they are, as after any mallopt.

    Nobody tells; so blocks of several sizes are asked for, and it is seen which are mapped: right to some 128 KiB, which
    malloc keeps at the end of its heap (M_TOP_PAD).
    """
    c, most = libc(), int(os.environ.get("MALLOC_MMAP_MAX_", 65536))
    c.mallopt(MMAP_MAX, most)
    c.malloc_trim(0)                            # a free end of the heap would serve large blocks too
    low, high = LEAST, LARGEST + PAGE
    while high - low > PAGE:
        middle = (low + high) // 2
        block = c.malloc(middle)
        low, high = (low, middle) if is_mapped(block) else (middle, high)
        c.free(block)
    threshold = min(high, LARGEST) if low > LEAST else LEAST
    trim = int(os.environ.get("MALLOC_TRIM_THRESHOLD_", 2 * threshold if threshold > LEAST else LEAST))
    return {MMAP_MAX: most, MMAP_THRESHOLD: threshold, TRIM_THRESHOLD: trim}


def settled() -> dict[int, int]:
    """Where that rule ends in a process that has freed a block of 32 MiB or more, in bytes; or what its environment asks for."""
    asked = {MMAP_MAX: ("MALLOC_MMAP_MAX_", 65536), MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", LARGEST),
             TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2 * LARGEST)}
    return {what: int(os.environ.get(name, value)) for what, (name, value) in asked.items()}


@contextlib.contextmanager
def _within(values: dict[int, int], afterwards: Callable[[], dict[int, int]]):
    """Contexts are not always left in order: one that was forgotten is left when it is collected, in the middle of another's steps."""
    if not listens():
        yield
        return
    mine, after = dict(values), afterwards()
    _ACTIVE.append(mine)
    _set(mine)
    try:
        yield
    finally:
        _ACTIVE[:] = [active for active in _ACTIVE if active is not mine]
        _set(_ACTIVE[-1] if _ACTIVE else after)
        libc().malloc_trim(0)                   # what was kept would serve the steps of another version


def _set(values: dict[int, int]) -> None:
    for name, value in values.items():
        libc().mallopt(name, value)


def tuned(values: dict[int, int]) -> contextlib.AbstractContextManager:
    """These settings of mallopt while inside, then those that glibc had come to by itself. With another malloc it does nothing."""
    return _within(values, usual)


def kept() -> contextlib.AbstractContextManager:
    """While inside, what a step frees is kept for the next one."""
    return tuned(KEEP)


def steady(device: str) -> contextlib.AbstractContextManager:
    """What steps on a device of this type are compared in: on a CPU, a heap that keeps what they free.

    Otherwise luck decides: whether the memory of a step is given back, and its pages are faulted in again, depends on what lies at
    the end of the heap, in this process, for this version of the step. Any mallopt ends glibc's own rule for good; so that what the
    caller trains afterwards is not slower for having been measured, it leaves behind what the rule would have come to.
    """
    return _within(KEEP, settled) if device == "cpu" else contextlib.nullcontext()
