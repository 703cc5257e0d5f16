"""What the comparison stands on: the common subsequence, moments given away exactly, and ledgers that add up; against slow counts."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope.trace import align, analyze, read
from perfscope.trace.align import common
from perfscope.trace.analysis import LOADERS
from perfscope.trace.changes import in_order
from perfscope.trace.exclusive import exclusive
from perfscope.trace.ledger import Entry, Ledger, ledgers

LETTERS = st.text("abc", max_size=14)


def length(a, b):
    """Of the longest common subsequence, by the textbook's table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
    return table[-1, -1]


@given(LETTERS, LETTERS)
def test_common(a, b):
    found = common(list(a), list(b))
    assert len(found) == length(a, b) and all(a[i] == b[j] for i, j in found)
    assert all(x[0] < y[0] and x[1] < y[1] for x, y in zip(found, found[1:]))


def test_common_of_what_is_too_large_keeps_order(monkeypatch):
    monkeypatch.setattr(align, "MOST_BITS", 0)
    a, b = list("xaabcaby"), list("xabbcaay")
    found = common(a, b)
    assert all(a[i] == b[j] for i, j in found) and all(x[0] < y[0] and x[1] < y[1] for x, y in zip(found, found[1:]))
    assert {(0, 0), (7, 7)} <= set(found) and len(found) >= 5


INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12), st.integers(0, 3)), max_size=14)


@given(INTERVALS, st.integers(-2, 50), st.integers(0, 30))
def test_exclusive(some, low, width):
    start, end, order = ([v(x) for x in some] for v in (lambda x: x[0], lambda x: x[0] + x[1], lambda x: x[2]))
    want = {}
    for t in range(60):
        running = [(order[i], i) for i in range(len(some)) if start[i] <= t < end[i]]
        if running:
            want[t] = min(running)[1]
    p = exclusive(start, end, order)
    assert {t: o for a, b, o in zip(p.start.tolist(), p.end.tolist(), p.owner.tolist()) for t in range(a, b)} == want
    assert p.lengths(len(some)).tolist() == [sum(w == i for w in want.values()) for i in range(len(some))]
    cut = p.within(low, low + width)
    assert int((cut.end - cut.start).sum()) == sum(low <= t < low + width for t in want)


def event(cat, name, ts, dur, tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


# (operator's begin, length, delay of its kernel, the kernel's length, stream, kind, whether the launch is recorded)
CALLS = st.lists(
    st.tuples(
        st.integers(-20, 110), st.integers(1, 15), st.integers(0, 40), st.integers(0, 25), st.integers(7, 8), st.integers(0, 2), st.booleans()
    ),
    max_size=10,
)


@settings(max_examples=80, deadline=None)
@given(CALLS, st.lists(st.tuples(st.integers(-10, 100), st.integers(1, 30)), max_size=2))
def test_ledger_adds_up_to_the_step(some, loads):
    events = [event("user_annotation", "ProfilerStep#1", 100, 100)]
    events += [event("user_annotation", "enumerate(DataLoader)#x.__next__", 100 + at, n) for at, n in loads]
    for i, (at, n, delay, ns, stream, kind, known) in enumerate(some):
        events.append(event("cpu_op", f"op{i % 3}", 100 + at, n))
        events += [event("cuda_runtime", "cudaLaunchKernel", 100 + at, 1, correlation=i)] if known else []
        name = ("gemm", "ncclDevKernel_AllReduce", "Memcpy HtoD")[kind]
        events.append(event("gpu_memcpy" if kind == 2 else "kernel", name, 100 + at + delay, ns, stream, correlation=i, stream=stream, device=0))
    with TemporaryDirectory() as folder:
        (Path(folder) / "t.json").write_text(json.dumps({"traceEvents": events}))
        trace = read(Path(folder) / "t.json", cache=False)
    rank = analyze(trace).ranks[0]
    step = rank.steps[0]
    book, = ledgers(trace.ranks[0], [step], step.device, LOADERS.search) if step.device >= 0 else (None,)
    if book:
        assert book.total_ns == step.duration_ns == 100_000 and book.loading_ns == step.loader_exposed_ns
        own = sum(e.own_ns for e in book.entries)
        assert own + book.carried_ns == step.busy_ns and sum(ns for e in book.entries for _, ns in e.kernels) == own
    host, = ledgers(trace.ranks[0], [step], -1, LOADERS.search)
    assert host.total_ns == 100_000 and host.loading_ns == step.loader_ns


def book(*entries):
    return Ledger("s", tuple(Entry(n, s, "", own, 0) for n, s, own in entries), 0, 0, 0)


def test_of_equal_operators_the_right_one_is_named():
    conv = ("conv", "[8]")
    a = book((*conv, 10), ("relu", "", 1), (*conv, 10), ("relu", "", 1), (*conv, 10))
    b = book((*conv, 10), ("relu", "", 1), (*conv, 30), ("relu", "", 1), (*conv, 10))
    slower, = [c for c in in_order([a], [b]) if c.state == "slower"]
    assert (slower.name, slower.nth, slower.of, slower.difference_ns) == ("conv", 2, 3, 20)
    first = book(("relu", "", 1), (*conv, 10), ("relu", "", 1), (*conv, 10))
    gone, = [c for c in in_order([a], [first]) if c.state == "gone"]
    assert (gone.name, gone.nth) == ("conv", 1)
    assert [(c.name, c.state, c.a_count) for c in in_order([a, a], [a]) if c.state != "equal"] == []
    half, = [c for c in in_order([a, first], [a]) if c.a_count == 0.5]
    assert half.nth == 1 and half.a_ns == 5 and half.b_ns == 10


def test_without_shapes_on_one_side_names_and_order_count():
    a, b = book(("conv", "[8]", 10), ("relu", "[8]", 1)), book(("conv", "", 12), ("relu", "", 1))
    assert [(c.name, c.state) for c in in_order([a], [b])] == [("conv", "slower"), ("relu", "equal")]
