"""What fits: batch sizes tried in strides, out of memory as a row, the largest batch that fits; with scripted memory and in earnest."""

import gc
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from perfscope.errors import PerfscopeError, WorkloadError
from perfscope.measure.ranks import LOST
from perfscope.workload import Workload, feed, fit, step
from perfscope.workload.fit import Pilot

MIB = 1 << 20


class Machine:
    """A device with so much memory, on which a step takes `fixed` bytes and `each` per sample. `tried` are the sizes in order.

    With `kills` the host does what Linux does: a step beyond its memory ends the test instead of raising.
    """

    def __init__(self, monkeypatch, memory, each, fixed=0, kind="cpu", least=1, sample_s=1e-4, kills=True):
        self.memory, self.each, self.fixed, self.least, self.sample_s = memory, each, fixed, least, sample_s
        self.kills = kills and kind == "cpu"
        self.prepared = SimpleNamespace(device=torch.device(kind))
        self.tried = []
        monkeypatch.setattr(fit, "pilot", self.pilot)
        monkeypatch.setattr(fit, "memory_now", lambda device: memory)
        monkeypatch.setattr(fit, "release", lambda: None)

    def pilot(self, prepared, size, parts):
        self.tried.append(size)
        if size < self.least:
            raise WorkloadError("the model takes no such batch")
        taken = self.fixed + self.each * size
        if taken > self.memory:
            assert not self.kills, f"batch {size} was tried: Linux would have killed the run"
            return Pilot(size, "out-of-memory", error="out of memory")
        return Pilot(size, step_s=self.sample_s * size, bytes=taken)


def statuses(pilots):
    return {p.batch_size: p.status for p in pilots}


def test_everything_fits(monkeypatch):
    m = Machine(monkeypatch, 1000 * MIB, MIB)
    assert statuses(fit.try_sizes(m.prepared, (8, 2, 4), ())) == {2: "ok", 4: "ok", 8: "ok"}
    assert m.tried == [2, 4, 8] and fit.largest_batch(m.prepared, [Pilot(2), Pilot(8)], ()) is None


def test_on_a_gpu_the_first_that_does_not_fit_ends_the_trial(monkeypatch):
    m = Machine(monkeypatch, 300 * MIB, MIB, kind="cuda")
    pilots = fit.try_sizes(m.prepared, (128, 256, 512, 1024), ())
    assert statuses(pilots) == {128: "ok", 256: "ok", 512: "out-of-memory", 1024: "out-of-memory"}
    assert m.tried == [128, 256, 512] and pilots[-1].error == "not tried: batch 512 does not fit"
    found = fit.largest_batch(m.prepared, pilots, ())
    assert 300 / 1.0625 <= found <= 300


def test_on_a_cpu_what_cannot_fit_is_not_even_tried(monkeypatch):
    m = Machine(monkeypatch, 1000 * MIB, MIB)
    pilots = fit.try_sizes(m.prepared, (400, 4000), ())
    assert statuses(pilots) == {400: "ok", 4000: "out-of-memory"}
    assert max(m.tried) == 400 and "extrapolated from batch 400" in pilots[1].error and "GiB are free" in pilots[1].error


def test_a_first_size_that_is_absurd_is_approached_in_strides(monkeypatch):
    """The user gave one size only, far beyond the memory: nothing smaller ran from which it could be known."""
    m = Machine(monkeypatch, 1000 * MIB, MIB)
    pilots = fit.try_sizes(m.prepared, (10 ** 9,), ())
    assert statuses(pilots) == {10 ** 9: "out-of-memory"} and max(m.tried) <= 1000
    assert all(b <= fit.STRIDE * a for a, b in zip(m.tried, m.tried[1:]))


def test_what_a_step_takes_at_any_size_is_not_multiplied(monkeypatch):
    """Batch 1 takes 15 MiB for the libraries and 10 KiB for the sample: batch 4096 does not take 60 GiB."""
    m = Machine(monkeypatch, 2000 * MIB, 10 << 10, fixed=15 * MIB)
    assert statuses(fit.try_sizes(m.prepared, (1, 4096), ())) == {1: "ok", 4096: "ok"}


def test_a_model_that_takes_one_batch_size_only(monkeypatch):
    m = Machine(monkeypatch, 1000 * MIB, MIB, least=128)
    assert statuses(fit.try_sizes(m.prepared, (128,), ())) == {128: "ok"}
    assert m.tried[-1] == 128


@settings(max_examples=200, deadline=None)
@given(memory=st.integers(200, 10 ** 5), each=st.integers(1, 10 ** 4), fixed=st.integers(0, 20),
       sizes=st.lists(st.integers(1, 10 ** 7), min_size=1, max_size=4, unique=True))
def test_no_size_is_tried_that_linux_would_kill_and_none_is_refused_that_fits(memory, each, fixed, sizes):
    with pytest.MonkeyPatch.context() as patch:
        m = Machine(patch, memory * MIB, each << 10, fixed=fixed * MIB)
        if (m.fixed + m.each * min(2 * fit.STRIDE, max(sizes))) > m.memory:
            return                              # so little memory that not even a small batch fits: that one is tried
        pilots = fit.try_sizes(m.prepared, sizes, ())
        assert [p.batch_size for p in pilots] == sorted(sizes)
        for p in pilots:
            taken = m.fixed + m.each * p.batch_size
            assert p.status == "out-of-memory" or taken <= m.memory
            roughly = 8 * m.fixed + m.each * p.batch_size       # the part that does not grow, in the last stride
            assert p.status == "ok" or roughly > 0.9 * fit.SAFE * m.memory


@settings(max_examples=200, deadline=None)
@given(memory=st.integers(10, 10 ** 6), each=st.integers(1, 10 ** 4), low=st.integers(1, 512), kind=st.sampled_from(["cpu", "cuda"]),
       factor=st.integers(2, 10 ** 6))
def test_the_largest_batch_that_fits(memory, each, low, kind, factor):
    with pytest.MonkeyPatch.context() as patch:
        m = Machine(patch, memory * MIB, each << 10, kind=kind, sample_s=1e-15)
        if m.each * low > fit.SAFE * m.memory or m.each * low * factor <= m.memory:
            return
        pilots = [m.pilot(None, low, ()), Pilot(low * factor, "out-of-memory")]
        found, most = fit.largest_batch(m.prepared, pilots, ()), m.memory // m.each
        assert low <= found <= most
        assert found >= (fit.SAFE if kind == "cpu" else 1) * most / (1 + 1 / 16) - 2
        assert len(m.tried) < 60


def test_where_the_search_would_take_too_long_the_rest_is_extrapolated(monkeypatch):
    m = Machine(monkeypatch, 1000 * MIB, MIB, sample_s=1.0)
    found = fit.largest_batch(m.prepared, [m.pilot(None, 4, ()), Pilot(10 ** 6, "out-of-memory")], ())
    assert found == 900 and m.tried == [4]
    gpu = Machine(monkeypatch, 1000 * MIB, MIB, sample_s=1.0, kind="cuda")
    assert fit.largest_batch(gpu.prepared, [gpu.pilot(None, 4, ()), Pilot(10 ** 6, "out-of-memory")], ()) is None, "nothing is claimed"
    assert fit.largest_batch(m.prepared, [Pilot(4, "out-of-memory")], ()) is None


@pytest.mark.parametrize("limit_s, sizes", [(fit.CPU_STEP_S / 64, [16, 32, 64]), (fit.CPU_STEP_S / 2, [1, 2]), (fit.CPU_STEP_S * 4, [1]),
                                            (1e-9, [64, 128, 256])])
def test_default_sizes_on_a_cpu_end_at_a_step_of_a_known_length(monkeypatch, limit_s, sizes):
    m = Machine(monkeypatch, 10 ** 15, 1, sample_s=limit_s)
    assert [p.batch_size for p in fit.default_sizes(m.prepared, ())] == sizes


def test_default_sizes_on_a_gpu(monkeypatch):
    m = Machine(monkeypatch, 10 ** 15, 1, kind="cuda")
    assert [p.batch_size for p in fit.default_sizes(m.prepared, ())] == [128, 256, 512, 1024]


@pytest.mark.parametrize("kind, sample_s, memory, size", [("cpu", fit.ONE_CPU_STEP_S / 16, 10 ** 15, 16), ("cpu", 1.0, 10 ** 15, 1),
                                                        ("cuda", 1e-4, 10 ** 15, 512), ("cuda", 1e-4, 300 * MIB, 256), ("cuda", 1e-4, 1, 8)])
def test_one_size_fits_the_memory_and_on_a_cpu_the_time(monkeypatch, kind, sample_s, memory, size):
    m = Machine(monkeypatch, memory, MIB, sample_s=sample_s, kind=kind)
    monkeypatch.setattr(fit, "load_batches", lambda prepared, n: None)
    monkeypatch.setattr(fit, "present_parts", lambda prepared, batches: ())
    assert fit.one_size(m.prepared) == size


@pytest.mark.parametrize("workers, burst", [(0, 1), (1, feed.BURSTS)])
def test_a_pilot_knows_how_many_steps_cover_the_bursts_of_the_workers(workers, burst):
    gc.collect()                                    # pipelines of other tests
    samples = TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.int64))

    def data(n):
        while True:
            yield from DataLoader(samples, n, num_workers=workers)
    model = nn.Linear(3, 2)
    prepared = step.prepare(Workload(model, nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1), lambda n: samples[:n],
                                     feed.stoppable(data)), device="cpu")
    assert fit.pilot(prepared, 4, ("optimizer", "data")).burst == burst


# ---------------------------------------------------------------- errors

def wrapped(error):
    """As perfscope wraps the error of a workload's own code."""
    try:
        try:
            raise error
        except Exception as e:
            raise WorkloadError(f"batch(4) failed: {e}") from None
    except WorkloadError as e:
        return e


@pytest.mark.parametrize("error, yes", [
    (MemoryError(), True), (torch.OutOfMemoryError("CUDA out of memory. Tried"), True), (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
    (RuntimeError("CUDA error: out of memory"), True), (RuntimeError("shape mismatch"), False), (ValueError("out of memory"), False),
    (wrapped(RuntimeError("can't allocate memory: you tried")), True), (wrapped(KeyError("x")), False), (WorkloadError("out of memory"), False)])
def test_what_is_out_of_memory(error, yes):
    assert fit.is_out_of_memory(error) is yes


def test_out_of_memory_in_words():
    text = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nframe #0"
    assert fit.out_of_memory_text(RuntimeError(text)).startswith("DefaultCPUAllocator: can't allocate memory: you tried")
    assert fit.out_of_memory_text(MemoryError()) == "out of memory"
    assert "9 bytes" in fit.out_of_memory_text(wrapped(RuntimeError(text)))


def test_own_error():
    kept = WorkloadError("said already")
    assert fit.own_error(kept, 4) is kept
    assert fit.own_error(RuntimeError("[gloo/transport/tcp] Connection closed by peer"), 4).message == LOST
    try:
        {}["key"]
    except KeyError as e:
        told = fit.own_error(e, 4)
    assert "batch 4 failed: KeyError: 'key'" in told.message and 'in test_own_error' in told.detail and isinstance(told, PerfscopeError)


# ---------------------------------------------------------------- in earnest

class Hungry(nn.Module):
    """Its forward pass asks for 2^42 bytes once the batch is larger than `most`."""

    def __init__(self, most):
        super().__init__()
        self.linear, self.most = nn.Linear(4, 2), most

    def forward(self, x):
        if len(x) > self.most:
            torch.empty(1 << 42, dtype=torch.uint8)
        return self.linear(x)


def test_out_of_memory_in_earnest():
    w = Workload(Hungry(20), nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, 0.1), lambda n: (torch.randn(n, 4), torch.zeros(n, dtype=torch.long)))
    prepared = step.prepare(w)
    parts = step.present_parts(prepared, step.load_batches(prepared, 2))
    pilots = fit.try_sizes(prepared, (2, 4, 64, 128), parts)
    assert statuses(pilots) == {2: "ok", 4: "ok", 64: "out-of-memory", 128: "out-of-memory"}
    assert "allocate" in pilots[2].error and "enforce fail" not in pilots[2].error and pilots[0].step_s > 0
    assert 19 <= fit.largest_batch(prepared, pilots, parts) <= 20


def test_a_batch_that_cannot_be_made_is_out_of_memory_too():
    w = Workload(nn.Linear(4, 2), nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, 0.1),
                 lambda n: (torch.empty(n, 1 << 38) if n > 2 else torch.randn(n, 4), torch.zeros(n, dtype=torch.long)))
    prepared = step.prepare(w)
    assert fit.pilot(prepared, 2, ("optimizer",)).status == "ok"
    tried = fit.pilot(prepared, 4, ("optimizer",))
    assert tried.status == "out-of-memory" and "allocate" in tried.error
    with pytest.raises(WorkloadError, match="batch 3 failed.*shape"):
        fit.pilot(step.prepare(Workload(nn.Linear(5, 2), w.loss, w.optimizer, (torch.randn(3, 4), torch.zeros(3, dtype=torch.long)))), 3, ())
