"""The heap while steps are timed: what glibc had come to is found, kept and given back. Each in a process of its own, whose malloc is fresh."""

import subprocess
import sys

import pytest

from perfscope import elsewhere
from perfscope.measure import heap

PAD = 256 << 10             # what malloc may keep at the end of its heap serves some blocks that would be mapped
HEAP = """
import ctypes, resource
from perfscope.measure import heap
libc = heap.libc()
libc.prctl(heap.SET_THP_DISABLE, 1, 0, 0, 0)    # the faults below are of small pages
if {freed}:
    libc.free(libc.malloc({freed}))
print(heap.usual()[heap.MMAP_THRESHOLD], heap.usual()[heap.TRIM_THRESHOLD])
if {settled}:
    with heap.steady("cuda"), heap.steady("cpu"):
        print(sorted({{heap.is_mapped(libc.malloc(size)) for size in (1 << 20, 40 << 20)}}))
    print([heap.is_mapped(libc.malloc(size)) for size in (31 << 20, 33 << 20)])
    raise SystemExit
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for size in (30 << 20, 80 << 20):
    faults(size)
    print(faults(size))
    with heap.kept():
        faults(size)
        print(faults(size))
    faults(size)
    print(faults(size))
"""


FORGOTTEN = """
from perfscope.measure import heap
libc = heap.libc()
def mapped(mib):                                # more every time: a free end of the heap serves no larger block
    block = libc.malloc(mib << 20)
    found = heap.is_mapped(block)
    libc.free(block)
    return found
forgotten = heap.kept()
forgotten.__enter__()
with heap.kept():
    del forgotten
    print(mapped(40))
    with heap.tuned(dict([(heap.MMAP_MAX, 65536), (heap.MMAP_THRESHOLD, heap.LEAST), (heap.TRIM_THRESHOLD, heap.LEAST)])):
        print(mapped(80))
    print(mapped(120))
print(mapped(160))
"""


@pytest.mark.skipif(not heap.listens(), reason="malloc is not glibc's")
def test_a_heap_that_was_forgotten_takes_nothing_from_the_next():
    """Left when it is collected, it must not end what another has set; nor does an inner one end its outer one."""
    done = subprocess.run([sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, env=elsewhere.environment())
    assert done.stdout.split() == ["False", "True", "False", "True"], done.stderr


@pytest.mark.skipif(not heap.listens(), reason="malloc is not glibc's")
def test_a_steady_heap_leaves_what_the_rule_of_glibc_ends_at():
    """Inside no block is mapped on its own; afterwards those above 32 MiB are, whatever the process had come to before."""
    done = subprocess.run([sys.executable, "-c", HEAP.format(freed=0, settled=True)], capture_output=True, text=True, env=elsewhere.environment())
    assert done.stdout.splitlines()[1:] == ["[False]", "[False, True]"], done.stdout + done.stderr


@pytest.mark.skipif(not heap.listens(), reason="malloc is not glibc's")
@pytest.mark.parametrize("freed", [0, 20 << 20])
def test_what_malloc_had_come_to_is_found_kept_and_given_back(freed):
    """glibc's own rule is the truth (mallopt(3)): the threshold is the largest mapped block that was freed, and 128 KiB before."""
    done = subprocess.run([sys.executable, "-c", HEAP.format(freed=freed, settled=False)], capture_output=True, text=True, env=elsewhere.environment())
    numbers = [int(n) for n in done.stdout.split()]
    assert len(numbers) == 8, done.stderr
    mapped, trimmed, *seen = numbers
    if freed:
        assert freed <= mapped <= freed + PAD and trimmed == 2 * mapped
    else:
        assert 128 << 10 <= mapped < 20 << 20
    for size, (before, cured, after) in zip((30 << 20, 80 << 20), (seen[:3], seen[3:])):
        assert before > 0.9 * size / 4096 and cured < 0.1 * size / 4096 and after > 0.9 * size / 4096, (size, before, cured, after)
