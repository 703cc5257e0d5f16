"""The analysis: interval unions against a slow independent count, hand-made traces, and the real ones of $PERFSCOPE_DATA."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope.record import to_dict
from perfscope.trace import analyze, nesting, read
from perfscope.trace import cache as store
from perfscope.trace.analysis import analyze_files
from perfscope.trace.host import link
from perfscope.trace.intervals import both, union
from perfscope.trace.names import kind
from tests.trace_fuzz import classic, events

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")
INTERVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 15)), max_size=25)


def ticks(pairs):
    """The union by brute force: the set of covered unit intervals."""
    return {t for a, d in pairs for t in range(a, a + d)}


def made(pairs):
    return union([a for a, _ in pairs], [a + d for a, d in pairs])


@given(INTERVALS, st.integers(-5, 80), st.integers(-5, 80))
def test_union(pairs, low, high):
    u, want = made(pairs), ticks(pairs)
    low, high = sorted((low, high))
    assert u.total == len(want)
    assert int(u.within(low, high)) == sum(low <= t < high for t in want)
    assert (u.start[1:] > u.end[:-1]).all()
    a, b = u.gaps(low, high)
    assert {t for x, y in zip(a, b) for t in range(x, y)} == set(range(low, high)) - want


@given(INTERVALS, INTERVALS)
def test_overlap_of_unions(one, two):
    u, v = made(one), made(two)
    assert u.total + v.total - both(u, v).total == len(ticks(one) & ticks(two))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 12)), max_size=20), st.integers(0, 2), st.integers(0, 45),
       st.sampled_from([3, nesting.PIECE]))
def test_nesting(some, thread, at, piece):
    t, a, d = (np.array([e[i] for e in some], np.int64) for i in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "PIECE", piece)
        n = nesting.nest(np.arange(len(some)), t, a, a + d)
    assert n.rows.tolist() == sorted(range(len(some)), key=lambda i: (some[i][0], some[i][1], -some[i][2], i))
    for i in range(len(some)):                           # the parent: the nearest earlier one of the thread that ends no sooner
        before = [j for j in range(i) if n.thread[j] == n.thread[i] and n.end[j] >= n.end[i]]
        assert n.parent[i] == (before[-1] if before else -1)
    found = int(n.innermost(np.array([thread]), np.array([at]))[0])
    around = [i for i in range(len(some)) if n.thread[i] == thread and n.start[i] <= at <= n.end[i]]
    assert found in around if around else found == -1
    if around:
        assert n.start[found] == max(n.start[i] for i in around) or n.end[found] < max(n.end)


def slow_idle(rank, device_rows, low, high):
    """Idle time by reason, one nanosecond-long decision at a time: written from the definitions, not from the code."""
    e = rank.events
    calls = {int(e.correlation[i]): int(e.ts_ns[i]) for i in np.flatnonzero((e.cat == 4) | (e.cat == 5))}
    work = sorted((int(e.ts_ns[i]), calls.get(int(e.correlation[i]), -1), int(e.ts_ns[i] + e.dur_ns[i]), int(e.stream[i])) for i in device_rows if e.dur_ns[i])
    work.sort(key=lambda w: (w[0], w[1], w[3]))
    out, t = {"host": 0, "launch": 0, "stream": 0, "unknown": 0}, low
    while t < high:
        running = [w for w in work if w[0] <= t < w[2]]
        if running:
            t = min(max(w[2] for w in running), high)
            continue
        later = [w for w in work if w[0] >= t]
        end = min(later[0][0], high) if later else high
        if not later:
            out["host"] += end - t
        elif later[0][1] < 0:
            out["unknown"] += end - t
        elif later[0][1] > t:
            cut = min(later[0][1], end)
            out["host"] += cut - t
            out["launch"] += end - cut
        else:
            before = [w[3] for w in work if w[2] == t]
            out["stream" if before and later[0][3] not in before else "launch"] += end - t
        t = end
    return out


WORK = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 12), st.integers(1, 3), st.integers(-1, 30)), min_size=1, max_size=15)


@settings(max_examples=60, deadline=None)
@given(WORK)
def test_busy_and_idle_by_reason(some):
    import tempfile
    from perfscope.trace.columns import KERNEL

    out = [{"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "pid": 1, "tid": 1, "ts": "100.000", "dur": "0.120", "args": {}}]
    for i, (at, length, stream, lead) in enumerate(some):
        out.append({"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": stream, "ts": f"100.{at:03}", "dur": f"0.{length:03}",
                    "args": {"correlation": i, "stream": stream, "device": 0}})
        if lead >= 0:
            out.append({"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1, "ts": f"{(100_000 + at - lead) / 1000:.3f}",
                        "dur": "0.001", "args": {"correlation": i}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        path.write_bytes(classic(out))
        trace = read(path, cache=False)
    step = analyze(trace).ranks[0].steps[0]
    assert step.busy_ns == len(ticks([(a, d) for a, d, *_ in some]) & set(range(120)))
    rank = trace.ranks[0]
    want = slow_idle(rank, np.flatnonzero(rank.events.cat == KERNEL), 100_000, 100_120)
    assert {k: getattr(step, f"idle_{k}_ns") for k in want} == want
    assert sum(want.values()) == step.idle_ns == step.duration_ns - step.busy_ns


def test_small_trace_by_hand(tmp_path):
    (tmp_path / "t.json").write_bytes(classic())
    a = analyze(read(tmp_path / "t.json", cache=False))
    r = a.ranks[0]
    assert (r.rank, r.world, r.devices, r.events, r.device_events) == (3, 8, {"0": "NVIDIA A100"}, len(events()), 10)
    s = r.steps[0]
    assert (s.duration_ns, s.busy_ns, s.compute_ns, s.copy_ns, s.kernels) == (1_000_000, 220_012, 200_012, 20_000, 4)
    assert r.layout.count == 2 and r.layout.attributed == 2 and r.layout.share_of_convolution == 0.5 and r.layout.by_op[0].name == "aten::cudnn_convolution"
    conv = next(o for o in r.ops if o.name == "aten::cudnn_convolution")
    assert (conv.count, conv.host_total_ns, conv.device_self_ns, conv.kernels, conv.shapes) == (4, 242_000, 200_012, 4, "[[8, 3, 32, 32], []]")
    assert (r.copies[0].bytes, r.copies[0].total_ns, r.copies[0].kind) == (8192, 40_000, "HtoD (Pageable -> Device)")
    assert (r.launches.count, r.launches.without_launch, r.launches.delay_median_ns) == (10, 0, 20_006)
    json.dumps(to_dict(a))


def test_backward_work_belongs_to_the_last_forward_operator_of_its_number(tmp_path):
    """An operator that records nothing for the backward pass carries the number of the next one that does."""
    def host(name, cat, ts, dur, tid=1, **args):
        return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": f"{ts}.000", "dur": f"{dur}.000", "args": args}
    back = "autograd::engine::evaluate_function: ConvolutionBackward0"
    out = [host("norm", "user_annotation", 100, 10), host("aten::detach", "cpu_op", 102, 2, **{"Sequence number": 7}),
           host("conv", "user_annotation", 120, 10), host("aten::conv2d", "cpu_op", 122, 6, **{"Sequence number": 7}),
           host(back, "cpu_op", 140, 10, tid=2, **{"Sequence number": 7}), host("cudaLaunchKernel", "cuda_runtime", 142, 1, tid=2, correlation=5),
           {"ph": "X", "cat": "kernel", "name": "dgrad", "pid": 0, "tid": 7, "ts": "150.000", "dur": "9.000", "args": {"correlation": 5, "stream": 7, "device": 0}}]
    (tmp_path / "t.json").write_bytes(classic(out))
    rank = read(tmp_path / "t.json", cache=False).ranks[0]
    links = link(rank)
    assert [rank.names[n] for n in rank.events.name[links.module]] == ["conv"]


def test_analysis_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FROM_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "t.json").write_bytes(classic(events(20)))
    first = analyze_files(tmp_path / "t.json")
    assert list((tmp_path / ".perfscope").glob("*.analysis"))
    assert analyze_files(tmp_path / "t.json") == first == analyze(read(tmp_path / "t.json", cache=False))


def test_names():
    assert kind("void cudnn::ops::nchwToNhwcKernel<float>").layout and kind("batched_transpose_16x32_half").layout
    assert kind("ncclDevKernel_AllReduce_Sum_f32_RING_LL").communication and kind("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32").tensor_cores
    assert kind("volta_scudnn_128x64_relu_interior_nn_v1").tensor_cores is False and kind("volta_sgemm_128x64_nt").category == "matmul"
    assert kind("void at::native::batch_norm_backward_kernel<c10::BFloat16>").norm and kind("vectorized_elementwise_kernel").tensor_cores is None


# name: events, kernels, nanoseconds of kernels, ms of the steps (data/README.md, to all printed digits)
KNOWN = {
    "a100-resnet50-ddp-nchw": (40573, 2700, 162.53, "222.44 219.73 224.94"),
    "v100-resnet50-fp32": (68692, 4350, 468.15, "35.12 72.08 95.70 95.55 95.70"),
    "v100-resnet50-loader-in-process": (75718, 8772, 591.53, "176.08 173.99 176.92 181.26 176.47 164.26"),
    "v100-resnet50-loader-4-workers": (71424, 8868, 594.87, "181.56 123.88 126.82 126.27 163.46 116.15"),
    "mi300x-resnet-ddp-checkpointing": (56451, 2995, 97.26, "16.80 15.95 15.89"),
}


@pytest.fixture(scope="module")
def known():
    cached = {}

    def get(name):
        if name not in cached:
            path = TRACES / name
            cached[name] = analyze(read(path if path.is_dir() else TRACES / f"{name}.json.gz", cache=False))
        return cached[name]
    return get


def matching(rank, text):
    found = [k for k in rank.kernels if text in k.name]
    return sum(k.count for k in found), sum(k.total_ns for k in found)


@real
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_oracles(name, known):
    rank = known(name).ranks[0]
    events_, kernels_, ms, steps = KNOWN[name]
    assert (rank.events, sum(k.count for k in rank.kernels), round(rank.kernels_ns / 1e6, 2)) == (events_, kernels_, ms)
    want = [float(s) for s in steps.split()]
    assert [s.duration_ns / 1e6 for s in rank.steps] == pytest.approx(want, abs=0.00501)      # 181.565 is printed as 181.56
    assert sum(k.total_ns for k in rank.kernels) == rank.kernels_ns


@real
def test_a100(known):
    rank = known("a100-resnet50-ddp-nchw").ranks[0]
    assert matching(rank, "nchwToNhwc") == (474, 12_616_974) and matching(rank, "nhwcToNchw")[0] == 159 and round(matching(rank, "nhwcToNchw")[1] / 1e6, 3) == 2.504
    assert (rank.layout.count, round(rank.layout.total_ns / 1e6, 2), round(rank.layout.share, 3), round(rank.layout.share_of_convolution, 3)) == (633, 15.12, 0.093, 0.269)
    assert rank.layout.attributed == 633 == sum(c.count for c in rank.layout.by_op if "conv" in c.name)
    assert matching(rank, "bn_fw_tr_1C11_kernel_NCHW")[0] == 75 and round(matching(rank, "bn_fw_tr_1C11_kernel_NCHW")[1] / 1e6, 3) == 8.753
    assert matching(rank, "cudnn::bn_")[0] == 318 and round(matching(rank, "cudnn::bn_")[1] / 1e6, 3) == 31.382
    nccl = [k for k in rank.kernels if k.category == "communication"]
    assert sum(k.count for k in nccl) == 21 and round(sum(k.total_ns for k in nccl) / 1e6, 3) == 46.876
    assert (rank.device_events, rank.device_events_ns) == (3774, 165_185_838)
    span = rank.spans[0]
    assert span.compute_ns == 116_046_564 and int(span.busy_ns / 1e6) == 157 and int(span.duration_ns / 1e6) == 660


@real
def test_v100(known):
    rank = known("v100-resnet50-fp32").ranks[0]
    assert rank.layout.count == 35 and round(rank.layout.total_ns / 1e6, 2) == 0.82 and round(rank.layout.share, 3) == 0.002
    assert matching(rank, "cudnn::bn_")[0] == 530 and matching(rank, "volta_scudnn")[0] == 320
    # data/README.md says 7.574774 ms: that is what times parsed as float64 give (they are rounded to 250 ns up here);
    # from the decimal text, with Python's decimal module, it is 7.574738
    assert rank.spans[0].idle_ns == 7_574_738
    for name, busy, span in (("in-process", 603.56, 996.48), ("4-workers", 614.41, 801.55)):
        s = known(f"v100-resnet50-loader-{name}").ranks[0].spans[0]
        assert (round(s.busy_ns / 1e6, 2), round(s.duration_ns / 1e6, 2)) == (busy, span)


@real
def test_loader_pair(known):
    inside, workers = (known(f"v100-resnet50-loader-{n}").ranks[0] for n in ("in-process", "4-workers"))

    def median(rank, what):
        return float(np.median([getattr(s, what) for s in rank.steps])) / 1e6
    assert round(median(inside, "duration_ns")) == 176 and round(median(workers, "duration_ns")) in (126, 127)
    assert median(inside, "loader_ns") > 40 > 2 > median(workers, "loader_ns")
    assert abs(inside.kernels_ns / workers.kernels_ns - 1) < 0.01
    assert inside.layout.count == 18 and round(inside.layout.total_ns / 1e6, 2) == 0.56
    assert any("resnet50_profiler_api.py" in s.where for s in inside.syncs)


@real
def test_mi300x(known):
    rank = known("mi300x-resnet-ddp-checkpointing").ranks[0]
    assert (rank.device_events, rank.launches.without_launch) == (3653, 968)
    outside = sum(k.total_ns for k in rank.kernels if k.category != "communication")
    count, ns = matching(rank, "batched_transpose_")
    assert (count, round(ns / 1e6, 2), round(ns / outside, 3)) == (943, 5.32, 0.207)
    count, ns = matching(rank, "void at::native::batch_norm_")
    assert (count, round(ns / 1e6, 3), round(ns / outside, 3)) == (392, 7.935, 0.308)
    talk = [k for k in rank.kernels if k.category == "communication"]
    assert sum(k.count for k in talk) == 17 and round(sum(k.total_ns for k in talk) / 1e6, 3) == 71.517
    assert "no_launch" in {w.code for w in known("mi300x-resnet-ddp-checkpointing").warnings}


@real
def test_h100_ranks(known):
    a = known("h100-nanogpt-8ranks")
    by = {r.rank: r for r in a.ranks}
    assert sorted(by) == list(range(8)) and all(26_892 <= r.events <= 27_969 and len(r.steps) == 4 for r in a.ranks)
    assert [(sum(k.count for k in by[n].kernels), round(by[n].kernels_ns / 1e6, 2)) for n in (0, 6)] == [(2917, 170.53), (3305, 208.06)]
    for n, count, ms in ((1, 76, 23.126), (6, 84, 59.056)):
        talk = [k for k in by[n].kernels if k.category == "communication"]
        assert (sum(k.count for k in talk), round(sum(k.total_ns for k in talk) / 1e6, 3)) == (count, ms)
    items = [sum(s.count for s in r.syncs if s.name == "aten::item") for r in a.ranks]
    assert min(items) == 252 and max(items) == 302
    t = a.together
    assert t.slowest == 1 and t.disagreeing == 0 and len(t.collectives) == 56
    for c in t.collectives:
        assert c.ranks == tuple(range(8)) and min(c.wait_ns) == 0 and c.duration_ns[c.last] == min(c.duration_ns)


@real
def test_collectives_by_hand(known):
    """The first call of each kind in the second step, from the JSON: the kernel with the correlation id of the first launch."""
    import decimal
    import gzip

    want = {}
    for n in range(8):
        with gzip.open(TRACES / "h100-nanogpt-8ranks" / f"rank{n}.json.gz", "rt") as f:
            found = [e for e in json.load(f, parse_float=decimal.Decimal)["traceEvents"] if e.get("ph") == "X"]
        step = next(e for e in found if e["name"] == "ProfilerStep#11" and e["cat"] == "user_annotation")
        calls = {e["args"]["correlation"]: e["ts"] for e in found if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e["args"]}
        for name in ("_reduce_scatter_base", "_allgather_base"):
            mine = [(calls[k["args"]["correlation"]], k) for k in found if k.get("cat") == "kernel" and k["args"].get("Collective name") == name
                    and step["ts"] <= calls.get(k["args"]["correlation"], -1) < step["ts"] + step["dur"]]
            kernel = min(mine, key=lambda pair: pair[0])[1]
            want.setdefault(name, []).append((int(kernel["ts"] * 1000), int(kernel["dur"] * 1000)))
    for name, kernels in want.items():
        c = next(c for c in known("h100-nanogpt-8ranks").together.collectives if c.step == "ProfilerStep#11" and c.name == name)
        start, length, end = [a for a, _ in kernels], [d for _, d in kernels], [a + d for a, d in kernels]
        assert c.duration_ns == tuple(length) and c.start_skew_ns == max(start) - min(start) and c.end_skew_ns == max(end) - min(end)
        assert c.last == length.index(min(length)) and c.wait_ns == tuple(t - min(length) for t in length)


@real
def test_ranks_in_parallel_give_the_same():
    with ThreadPoolExecutor(2) as pool:
        assert analyze_files(TRACES / "h100-nanogpt-8ranks", executor=pool, cache=False) == analyze(read(TRACES / "h100-nanogpt-8ranks", cache=False))


@pytest.mark.parametrize("executor", ["processes", "threads"])
def test_the_example_of_executors(executor, tmp_path):
    for n in (0, 1):
        one = classic(events(3)).replace(b'"rank": 3', f'"rank": {n}'.encode())
        (tmp_path / f"rank{n}.json").write_bytes(one)
    example = Path(__file__).parents[1] / "docs" / "examples" / "ranks_in_parallel.py"
    done = subprocess.run([sys.executable, str(example), str(tmp_path), "--executor", executor], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"rank {n}: steps 3.000 ms, waited 0.000 ms" for n in (0, 1)] + ["straggler: None"], done.stderr
