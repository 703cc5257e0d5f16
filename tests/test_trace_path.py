"""Critical path, roofline, compiled code, modules, memory: hand-made traces with known answers, and torch's own FLOP counter."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope.trace import analyze, read
from perfscope.trace.roofline import flops

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")


def x(cat, name, ts, dur, tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


def step(length, n=0, at=0):
    return x("user_annotation", f"ProfilerStep#{n}", at, length)


def call(name, ts, dur, correlation, tid=1):
    return x("cuda_runtime", name, ts, dur, tid, correlation=correlation)


def work(name, ts, dur, correlation, stream=7, cat="kernel"):
    return x(cat, name, ts, dur, stream, correlation=correlation, stream=stream, device=0)


def of(events, folder):
    path = Path(folder) / "t.json"
    path.write_text(json.dumps({"traceEvents": events}))
    return analyze(read(path, cache=False)).ranks[0]


def path_of(events, folder):
    c = of(events, folder).critical
    assert sum(c.by_kind.values()) == c.duration_ns and all(s.duration_ns > 0 for s in c.longest)
    return c, {k: v / 1000 for k, v in c.by_kind.items()}


def test_path_through_a_synchronisation(tmp_path):
    c, kinds = path_of([step(100), x("cpu_op", "aten::mm", 5, 10), call("cudaLaunchKernel", 10, 3, 1), work("gemm", 20, 40, 1),
                        call("cudaDeviceSynchronize", 50, 20, 2)], tmp_path)
    assert kinds == {"compute": 40, "host_other": 35, "sync": 10, "launch": 10, "host_operator": 5} and c.after_ns == 0
    assert [(s.kind, s.name, s.start_ns) for s in c.longest][:2] == [("compute", "gemm", 20_000), ("host_other", "", 70_000)]


def test_path_of_a_device_that_lags(tmp_path):
    c, kinds = path_of([step(50), call("cudaLaunchKernel", 10, 3, 1), work("gemm", 20, 40, 1), call("cudaLaunchKernel", 15, 3, 2),
                        work("ncclDevKernel_AllReduce", 62, 30, 2, 20)], tmp_path)
    assert kinds == {"compute": 40, "communication": 30, "gap": 2, "launch": 10, "host_other": 10} and c.after_ns == 42_000


def test_path_of_a_blocking_copy_and_of_a_sync_without_work(tmp_path):
    _, kinds = path_of([step(100), call("cudaMemcpyAsync", 30, 25, 1), work("Memcpy DtoH (Device -> Pageable)", 40, 10, 1, cat="gpu_memcpy"),
                        call("cudaStreamSynchronize", 60, 5, 9)], tmp_path)
    assert kinds == {"host_other": 75, "launch": 10, "copy": 10, "sync": 5}


def test_path_without_a_launch_or_device(tmp_path):
    _, kinds = path_of([step(100), work("gemm", 30, 40, 1), call("cudaDeviceSynchronize", 25, 50, 2)], tmp_path)
    assert kinds["unknown"] == 30 and kinds["compute"] == 40
    _, kinds = path_of([step(100), x("cpu_op", "aten::mm", 20, 30), x("cpu_op", "aten::inner", 25, 5),
                        x("user_annotation", "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 0, 22)], tmp_path)
    assert kinds == {"loader": 22, "host_operator": 28, "host_other": 50}


def test_times_are_wide_even_where_they_are_small(tmp_path):      # 16 or 32 bits would overflow in start + duration
    a = of([step(40, 0), work("k", 20, 19, 1), work("k", 2_000_000, 1_900_000, 2)], tmp_path)
    assert a.device_events_ns == 1_900_019_000 and a.spans[0].duration_ns == 3_899_980_000 and a.spans[0].busy_ns == 1_900_019_000


def test_path_takes_the_step_of_median_length(tmp_path):
    c, _ = path_of([step(100, 0), step(30, 1, 100), step(40, 2, 130)], tmp_path)
    assert (c.step, c.start_ns, c.duration_ns) == ("ProfilerStep#2", 130_000, 40_000)


KERNELS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 30), st.integers(0, 60), st.integers(7, 9), st.booleans(), st.booleans()), max_size=12)


@settings(max_examples=80, deadline=None)
@given(KERNELS, st.lists(st.tuples(st.integers(0, 90), st.integers(0, 30)), max_size=4))
def test_path_covers_the_step_whatever_happens(tmp_path_factory, some, waits):
    events = [step(100)]
    for i, (at, delay, length, stream, copy, known) in enumerate(some):
        events += [call("cudaMemcpyAsync" if copy else "cudaLaunchKernel", at, 2 + length * copy, i)] if known else []
        events.append(work("k", at + delay, length, i, stream, "gpu_memcpy" if copy else "kernel"))
    events += [call("cudaStreamSynchronize", at, length, 500 + i) for i, (at, length) in enumerate(waits)]
    c, _ = path_of(events, tmp_path_factory.mktemp("p"))
    ends = [100] + [at + d + n for at, d, n, _, _, known in some if known and n and at < 100]
    assert c.duration_ns == 1000 * max(ends) and c.start_ns == 0


@real
def test_path_on_the_loader_pair():
    slow, fast = (analyze(read(TRACES / f"v100-resnet50-loader-{n}.json.gz", cache=False)).ranks[0].critical for n in ("in-process", "4-workers"))
    assert 40e6 < slow.by_kind["loader"] - fast.by_kind["loader"] < 75e6
    assert sum(slow.by_kind.values()) == slow.duration_ns


def test_flops_by_hand():
    assert flops("aten::mm", [[3, 4], [4, 5]], {}) == 120
    assert flops("aten::mm", [[3, 4], [5, 5]], {}) is None
    assert flops("aten::addmm", [[5], [3, 4], [4, 5], [], []], {}) == 120
    assert flops("aten::bmm", [[2, 3, 4], [2, 4, 5]], {}) == 240
    assert flops("aten::linear", [[7, 3, 4], [5, 4], [5]], {}) == 2 * 7 * 3 * 4 * 5
    assert flops("aten::conv2d", [[1, 8, 6, 6], [8, 1, 3, 3]], {}) is None
    assert flops("aten::conv2d", [[1, 8, 6, 6], [8, 1, 3, 3]], {((1, 8, 6, 6), (8, 1, 3, 3)): (1, 8, 4, 4)}) == 2 * 8 * 16 * 9
    assert flops("aten::convolution_backward", [[2, 6, 4, 4], [2, 3, 6, 6], [6, 3, 3, 3]], {}) == 2 * 2 * (2 * 6 * 16) * 27
    assert flops("aten::mm", "nonsense", {}) is None and flops("aten::relu", [[2]], {}) is None


def test_flops_are_those_of_torch(tmp_path):               # without groups: its counter ignores them in the weight's gradient
    import torch
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1, stride=2), torch.nn.Conv2d(8, 8, 3), torch.nn.ConvTranspose2d(8, 4, 2),
                              torch.nn.Flatten(), torch.nn.Linear(4 * 7 * 7, 10))
    data = torch.randn(3, 4, 16, 16, requires_grad=True)

    def once():
        out = net(data)
        (torch.bmm(out[:, None], out[:, :, None]).sum() + (out @ out.T).sum()).backward()
    with FlopCounterMode(display=False) as counter:
        once()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as p:
        once()
    p.export_chrome_trace(str(tmp_path / "t.json"))
    r = analyze(read(tmp_path / "t.json", cache=False)).ranks[0].roofline
    assert r.without == 0 and r.flops == counter.get_total_flops()
    row = next(r for r in r.rows if r.name == "aten::linear")
    assert row.bytes == 4 * (3 * 196 + 10 * 196 + 10 + 3 * 10) and row.flop_per_s == row.flops / row.host_ns * 1e9


def test_rate_is_over_device_time_and_nothing_counts_twice(tmp_path):
    shapes, types = {"Input Dims": [[3, 4], [5, 4], [5]], "Input type": ["float"] * 3}, {"Input Dims": [[5], [3, 4], [4, 5]]}
    r = of([step(100), x("cpu_op", "aten::linear", 0, 20, **shapes), x("cpu_op", "aten::addmm", 2, 10, **types), call("cudaLaunchKernel", 5, 2, 1),
            work("gemm", 10, 4, 1), x("cpu_op", "aten::conv2d", 30, 20, **{"Input Dims": [[1, 1, 4, 4], [1, 1, 3, 3]]}),
            x("cpu_op", "aten::convolution", 31, 9, **{"Input Dims": [[1, 1, 4, 4], [1, 1, 3, 3]]})], tmp_path).roofline
    assert [(row.name, row.count, row.flops, row.device_ns, row.flop_per_s) for row in r.rows] == [("aten::linear", 1, 120, 4000, 120 / 4e-6)]
    assert (r.flops, r.without) == (120, 1)


def test_compiled(tmp_path):
    c = of([step(100), x("user_annotation", "Torch-Compiled Region: 0/0", 0, 10), x("user_annotation", "Torch-Compiled Region: 0/1", 20, 10),
            x("user_annotation", "Torch-Compiled Region: 0/1", 40, 10), x("cpu_op", "TorchDynamo Cache Lookup", 19, 1), call("cudaGraphLaunch", 42, 3, 5),
            work("a", 50, 4, 5), work("b", 55, 6, 5), x("cpu_op", "_compile.compile_inner (dynamo_timed)", 60, 10),
            x("cpu_op", "OutputGraph.call_user_compiler (dynamo_timed)", 62, 4)], tmp_path).compiled
    assert (c.graph_launches, c.graph_host_ns, c.graph_device_events, c.graph_device_ns) == (1, 3000, 2, 10_000)
    assert [(r.name[-3:], r.count, r.host_ns, r.device_ns) for r in c.regions] == [("0/1", 2, 20_000, 10_000), ("0/0", 1, 10_000, 0)]
    assert (c.recompiled, c.recompilations, c.compiling, c.compiling_ns, c.lookups, c.lookups_ns) == (1, 1, 1, 10_000, 1, 1000)


def test_modules(tmp_path):
    def module(name, ts, dur):
        return x("python_function", f"nn.Module: {name}", ts, dur)
    rows = of([step(100), module("Net_0", 0, 50), module("Linear_0", 5, 10), module("Linear_0", 20, 10), module("ReLU_0", 32, 5), x("cpu_op", "aten::mm", 6, 5),
               call("cudaLaunchKernel", 7, 1, 1), work("gemm", 9, 4, 1), x("cpu_op", "aten::add", 45, 4), call("cudaLaunchKernel", 46, 1, 2), work("add", 50, 3, 2)],
              tmp_path).modules
    assert [(r.path, r.depth, r.count, r.host_ns, r.device_ns, r.device_self_ns) for r in rows] == [
        ("Net_0", 0, 1, 50_000, 7000, 3000), ("Net_0/Linear_0", 1, 2, 20_000, 4000, 4000), ("Net_0/ReLU_0", 1, 1, 5000, 0, 0)]


def test_memory(tmp_path):
    def event(ts, size, total):
        return {"ph": "i", "name": "[memory]", "ts": ts, "pid": 1, "tid": 1, "s": "t",
                "args": {"Total Reserved": 4096, "Total Allocated": total, "Bytes": size, "Addr": 1, "Device Id": 0, "Device Type": 1}}
    m, = of([step(100, 0), step(100, 1, 100), event(10, 64, 164), event(50, 100, 264), event(90, -164, 100), event(120, 30, 130)], tmp_path).memory
    assert (m.device, m.events, m.peak, m.peak_at_ns, m.peak_reserved, m.first, m.last) == ("1:0", 4, 264, 50_000, 4096, 100, 130)
    assert [(s.peak, s.growth) for s in m.steps] == [(264, 0), (130, 30)]
    assert m.curve == ((10_000, 164), (50_000, 264), (90_000, 100), (120_000, 130))


def test_what_was_not_recorded_is_none(tmp_path):
    a = of([step(10)], tmp_path)
    assert (a.roofline, a.compiled, a.modules, a.memory) == (None,) * 4 and a.critical.by_kind == {"host_other": 10_000}


@real
def test_real_ones():
    a = analyze(read(TRACES / "mi300x-resnet-ddp-checkpointing.json.gz", cache=False)).ranks[0]
    assert a.modules[0].path == "DistributedDataParallel_0" and sum(m.device_ns for m in a.modules if not m.depth) == sum(m.device_self_ns for m in a.modules)
    assert a.roofline.without == 0 and all(r.flop_per_s < 163.4e12 for r in a.roofline.rows if r.flop_per_s)     # MI300X: the peak of FP32
    h = analyze(read(TRACES / "h100-nanogpt-8ranks" / "rank0.json.gz", cache=False)).ranks[0]
    assert h.compiled.recompiled >= 1 and sum(h.critical.by_kind.values()) == h.critical.duration_ns
    assert max(r.flop_per_s for r in h.roofline.rows if r.name == "aten::mm") < 989.4e12                          # H100: bfloat16, dense
