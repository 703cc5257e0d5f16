"""What to do next: each finding is said where its figures are there, and only there; tensor cores; the real traces."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from perfscope.trace import analyze, read
from perfscope.trace.advice import advice
from perfscope.trace.analysis import Analysis, RankAnalysis
from perfscope.trace.compiled import Compiled
from perfscope.trace.cores import TensorCores, Unused
from perfscope.trace.critical import CriticalPath, OnPath
from perfscope.trace.memory import Memory, StepMemory
from perfscope.trace.names import kind
from perfscope.trace.peaks import peak
from perfscope.trace.ranks import RankShare, Together
from perfscope.trace.steps import Step
from perfscope.trace.tables import Copy, KernelRow, Launches, Layout, Sync
from perfscope.trace.typical import chosen

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")
MS = 1_000_000


def steps(**more):
    """Three steps of 100 ms that compute all the time, but for what is said."""
    idle = sum(v for k, v in more.items() if k in ("idle_host_ns", "idle_launch_ns"))
    busy = 100 * MS - idle
    made = {"busy_ns": busy, "compute_ns": busy, "idle_ns": idle, **more}
    return tuple(Step(f"ProfilerStep#{n}", 0, 200 * MS * n, 100 * MS, **made) for n in range(3))


def kernel(name, ns, **more):
    k = kind(name)
    return KernelRow(name, k.category, 10, ns, 1, ns, ns / (300 * MS), k.tensor_cores, k.layout, k.norm, 10, **more)


QUIET = RankAnalysis(0, 1, "t", devices={"0": "A100"}, steps=steps(), kernels=(kernel("sgemm", 300 * MS),), kernels_ns=300 * MS)
CASES = {
    "Load faster": {"steps": steps(idle_host_ns=30 * MS, loader_ns=40 * MS, loader_exposed_ns=30 * MS)},
    "Launch less": {
        "steps": steps(idle_host_ns=20 * MS, idle_launch_ns=5 * MS),
        "launches": Launches(30, 0, 0, 0, 0, 8, MS, 1, 1, 1, 1, 1),
        "critical": CriticalPath("s", 0, 100, 0, {"host_operator": 90}, 1, (), (OnPath("host_operator", "aten::relu", 3, 90),)),
    },
    "Hide communication": {"steps": steps(compute_ns=80 * MS, communication_ns=25 * MS, communication_exposed_ns=20 * MS, communication_overlapped_ns=5 * MS)},
    "Pin the host's memory": {"copies": (Copy("HtoD (Pageable -> Device)", 3, 6 * MS, 6 * MS, 1.0),)},
    "Keep one layout": {"layout": Layout(633, 30 * MS, 0.1, 100 * MS, 0.3, 633)},
    "Use tensor cores": {"tensor_cores": TensorCores(100 * MS, 100 * MS, 0, 0, (Unused("aten::mm", "float", 10, 100 * MS),))},
    "Look at the norms": {"kernels": (kernel("sgemm", 200 * MS), kernel("cudnn::bn_fw", 100 * MS))},
    "Ask the GPU for fewer numbers": {"syncs": (Sync("aten::item", "", "train.py(7): step", 60, 6 * MS, MS),)},
    "Compile before the trace": {"compiled": Compiled(0, 0, 0, 0, (), 0, 0, 3, 50 * MS, 0, 0)},
    "Find the recompilations": {"compiled": Compiled(0, 0, 0, 0, (), 1, 2, 0, 0, 0, 0)},
    "Look for what is kept": {"memory": (Memory("1:0", 9, 1000, 0, 2000, 0, 900, tuple(StepMemory(str(n), 1000, 100) for n in range(3))),)},
}


@pytest.mark.parametrize("finding", CASES)
def test_a_finding_is_said_alone(finding):
    rank = replace(QUIET, **CASES[finding])
    said = advice(Analysis(ranks=(rank,)), rank)
    assert len(said) == 1 and said[0].startswith(f"{finding}: ") and said[0].endswith("."), said


def test_details_are_named():
    def of(finding):
        rank = replace(QUIET, **CASES[finding])
        return advice(Analysis(ranks=(rank,)), rank)[0]

    assert "30.00 ms per step (30 %)" in of("Load faster") and "25.00 ms per step (25 %)" in of("Launch less")
    assert "80 % of the kernels are shorter" in of("Launch less") and "aten::relu (3x" in of("Launch less")
    assert "train.py(7): step" in of("Ask the GPU for fewer numbers") and "20 times per step" in of("Ask the GPU for fewer numbers")
    assert "set_float32_matmul_precision" in of("Use tensor cores") and "633" in of("Keep one layout")


def test_nothing_to_say_and_the_order():
    said, = advice(Analysis(ranks=(QUIET,)), QUIET)
    assert said.startswith("Nothing here waits for long: the GPU is busy 100 %") and "matmul" in said
    both = replace(QUIET, steps=steps(idle_host_ns=30 * MS, loader_exposed_ns=10 * MS, loader_ns=10 * MS))
    assert [s.split(":")[0] for s in advice(Analysis(ranks=(both,)), both)] == ["Launch less", "Load faster"]     # 20 against 10 ms
    assert advice(Analysis(ranks=(replace(QUIET, steps=()),)), replace(QUIET, steps=())) == []


def test_ranks():
    share = lambda n, wait, compute: RankShare(n, 300 * MS, compute, 0, wait, 0)  # noqa: E731
    t = Together((), (share(0, 60 * MS, 200 * MS), share(1, 0, 300 * MS)), 0, 0, 1, 1, 0.2)
    said = advice(Analysis(ranks=(QUIET, replace(QUIET, rank=1)), together=t), QUIET)
    assert [s.split(":")[0] for s in said] == ["Speed up rank 1", "Even out the work"] and "rank 1 computes 20 %" in said[1]


def test_tensor_cores(tmp_path):
    def trace(major, device="NVIDIA A100", types='["float", "float"]'):
        events = [{"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "pid": 1, "tid": 1, "ts": 0, "dur": 100, "args": {}}]
        for i, name in enumerate(("ampere_sgemm_128x64", "ampere_sgemm_128x64", "cutlass_80_tensorop_s1688gemm", "splitKreduce_kernel", "volta_sgemm")):
            at = 10 * i
            if i < 4:               # the last has no operator
                events.append({"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": at, "dur": 8, "args": {"Input type": json.loads(types)}})
                events.append({"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1, "ts": at, "dur": 1, "args": {"correlation": i}})
            events.append({"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": at + 2, "dur": 1 + i, "args": {"correlation": i, "stream": 7, "device": 0}})
        meta = {"deviceProperties": [{"id": 0, "name": device, "computeMajor": major}]} if major else {}
        (tmp_path / "t.json").write_text(json.dumps({**meta, "traceEvents": events}))
        return analyze(read(tmp_path / "t.json", cache=False)).ranks[0].tensor_cores

    t = trace(8)
    assert (t.used_ns, t.eligible_ns, t.other_ns, t.unknown_ns) == (3000, 3000, 0, 5000) and t.unused == (Unused("aten::mm", "float", 2, 3000),)
    assert t.total_ns == 11_000                             # the helper is no matmul
    assert (trace(7).eligible_ns, trace(7).other_ns) == (0, 3000)               # Volta has none for float32
    assert trace(7, types='["c10::Half"]').eligible_ns == 3000 and trace(7, types='["c10::BFloat16"]').other_ns == 3000
    assert trace(9, "AMD Instinct MI300X").eligible_ns == 3000 and trace(9, "AMD Radeon Pro").unknown_ns == 8000 and trace(0).unknown_ns == 8000


def test_names_of_what_uses_tensor_cores():
    for name in ("igemm_fwd_gtcx3_nhwc_bf16_bx0", "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<x>>>", "void flash_fwd_kernel<x>", "fmha_cutlassF_f16_aligned_64x64_rf_sm80"):
        assert kind(name).tensor_cores is True, name
    for name in ("SubTensorOpWithScalar1d", "triton_per_fused__flash_attn_backward__x", "void cublasLt::splitKreduce_kernel<32>"):
        assert kind(name).tensor_cores is None, name
    assert kind("volta_scudnn_128x64_relu").tensor_cores is False


def test_data_sheets():
    assert peak("NVIDIA A100-PG509-200").flop_per_s["float"] == 156e12 and peak("NVIDIA A100-SXM4-80GB").bytes_per_s == 2039e9
    assert peak("NVIDIA H100 80GB HBM3").flop_per_s["c10::Float8_e4m3fn"] == 1978.9e12 and "c10::BFloat16" not in peak("Tesla V100-SXM2-32GB").flop_per_s
    assert peak("NVIDIA GeForce GTX 1080") is None


@real
def test_real_ones_get_the_right_advice():
    def of(name):
        a = analyze(read(TRACES / name, cache=False))
        return [s.split(":")[0] for s in advice(a, chosen(a))]

    assert of("a100-resnet50-ddp-nchw.json.gz") == ["Launch less", "Hide communication", "Look at the norms", "Keep one layout"]
    assert of("v100-resnet50-loader-in-process.json.gz")[0] == "Load faster" and "Keep one layout" not in of("v100-resnet50-fp32.json.gz")
    assert "Load faster" not in of("v100-resnet50-loader-4-workers.json.gz")
    assert of("h100-nanogpt-8ranks")[0] == "Speed up rank 1"
