"""Memory that one step frees goes back to the kernel, and the next step faults it in again, page by page.

## What it sees
Page faults of this process (getrusage) in a few steps after the first, and the processor time that the kernel took meanwhile.
It fires at 256 faults or more in every one of these steps, 1 MiB of pages, where the kernel's time for them is at least 5 % of
the steps' time (or of this process's own processor time, if that is less). What only some steps have is no such disease: a heap
that still grows, a fork, after which each page that is written faults once. The kernel's time is divided evenly among all faults.

## Why it is slow
PyTorch takes the memory of tensors on a CPU from malloc and caches none. glibc's malloc gives the free end of its heap back to the
kernel as soon as it is larger than 64 MiB at most (M_TRIM_THRESHOLD), and always maps blocks above 32 MiB anew. The activations
of a step are freed in its backward pass, so every step gets fresh pages, which the kernel has to find, to zero and to enter
one by one: 2 us per page of 4 KiB on the virtual machine where this was written, 132 to 173 of 393 to 426 ms of a step of
mnist_cnn at batch 1024 (one thread, three processes; 238 to 265 ms with the cure). At batch 256 it differed from process to
process, by what happened to lie at the end of the heap: 900, 8 000 or 11 000 faults per step.

## Cure
Tell malloc to keep what was freed and to map no block on its own: mallopt(M_TRIM_THRESHOLD) and mallopt(M_MMAP_MAX), before the
first step. From outside, without a change: MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_MMAP_MAX_=0 python train.py. Or another malloc
(jemalloc, tcmalloc), which keeps memory by itself.

## Not for
Steps on a GPU: PyTorch caches the memory of devices. Machines short of memory: the process keeps what its largest step took.
Malloc in other C libraries (musl, macOS), or another one preloaded, does not listen to this.

## References
mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; PyTorch documentation, "Performance Tuning Guide", "Switch memory allocator".
"""

import contextlib
import ctypes
from functools import partial

from perfscope.measure import heap
from perfscope.probe import Finding, Place, add

USES = ("config",)
DEVICES = ("cpu",)
HEAP = True
CODE = """import ctypes                                          # before the first step; glibc only
ctypes.CDLL(None).mallopt(-1, 2**31 - 1)               # M_TRIM_THRESHOLD: give no freed memory back
ctypes.CDLL(None).mallopt(-4, 0)                       # M_MMAP_MAX: map no large block anew"""
FAULTS = 256                # per step
SHARE = 0.05                # the kernel's processor time, of the steps' time
SCRATCH, MOST_HOLES = 8 << 20, 256                          # bytes of the planted block; that many are taken at most
GIVE_BACK = {heap.TRIM_THRESHOLD: heap.LEAST, heap.MMAP_THRESHOLD: heap.LEAST, heap.MMAP_MAX: 65536}


def detect(evidence):
    seen = evidence.config.observed
    each, total = seen.get("page_faults") or [0], min(sum(seen.get("step_s", ())), seen.get("cpu_s", 0.0))   # neither waiting nor spinning counts
    faults = min(each)
    if faults < FAULTS or not total:
        return
    system_s = seen["system_s"] * faults / sum(each)        # per step, for the faults that every step has
    share = min(1.0, system_s * len(each) / total)
    if share < SHARE:
        return
    place = Place("malloc", f"{faults} page faults or more in every step ({faults * heap.PAGE / 2**20:.0f} MiB), for which the kernel "
                  f"works {system_s * 1e3:.1f} of {total / len(each) * 1e3:.1f} ms")
    other = not heap.listens()
    yield Finding("", "freed memory goes back to the kernel at every step and is faulted in again", (place,),
                  "use a malloc that keeps memory: this one is not glibc's" if other else "tell malloc to keep what was freed",
                  share=share, basis="ceiling", evidence={"page_faults_per_step": faults, "system_s_per_step": system_s},
                  extra={"hint": True} if other else {})


def edit(source):
    """The two calls behind the imports, so that they come before the first step."""
    from perfscope.patch import after_imports
    return after_imports(source, "\n" + CODE + "\n")


def fix(workload):
    return add(workload, contexts=[heap.kept])


class Scratch:
    """What follows a step: what followed it before, and a block that is taken, touched once per page, and freed."""

    def __init__(self, after=None):
        self.after, self.libc = after, heap.libc()

    def __call__(self, loss):
        if self.after is not None:
            self.after(loss)
        block = self.libc.malloc(SCRATCH)
        memoryview((ctypes.c_char * SCRATCH).from_address(block)).cast("B")[::heap.PAGE] = bytes(SCRATCH // heap.PAGE)
        self.libc.free(block)


@contextlib.contextmanager
def no_holes():
    """Whatever in the heap could serve the planted block is taken, while inside: earlier work may have left room there. Its pages
    are small ones, also where the kernel would give this process large ones unasked."""
    libc, taken = heap.libc(), []
    large = libc.prctl(heap.GET_THP_DISABLE, 0, 0, 0, 0)
    libc.prctl(heap.SET_THP_DISABLE, 1, 0, 0, 0)
    while len(taken) < MOST_HOLES and not heap.is_mapped(block := libc.malloc(SCRATCH)):
        taken.append(block)
    if len(taken) < MOST_HOLES:
        libc.free(block)
    try:
        yield
    finally:
        libc.prctl(heap.SET_THP_DISABLE, max(0, large), 0, 0, 0)
        for block in taken:
            libc.free(block)


def healthy(workload):
    """The same block, from a heap that keeps it."""
    return fix(add(workload, after_step=Scratch(workload.after_step)))


def plant(workload):
    return add(workload, contexts=[partial(heap.tuned, GIVE_BACK), no_holes], after_step=Scratch(workload.after_step))
