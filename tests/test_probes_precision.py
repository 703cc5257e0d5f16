"""Probes of convolution choice and precision: each condition that decides, thresholds from both sides, real traces, restored switches."""

import copy
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perfscope import contract, numerics, registry
from perfscope.evidence import precision
from perfscope.evidence import full_step
from perfscope.probe import Config, Evidence, OpCall, Tensor, add, setting
from perfscope.trace.analysis import RankAnalysis, analyze_files
from perfscope.trace.steps import Step
from perfscope.trace.tables import Caller, KernelRow, OpRow
from perfscope.workload import step

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "../shared/data")) / "traces"
BF16 = ("avx2", "avx512f", "avx512_bf16")


def probe(name):
    return registry.load("probes", name)


def found(name, evidence):
    return list(probe(name).detect(evidence))


def mm(dtype="float32", n=64, k=256, m=128, device="cpu", **more):
    """A matmul of 2 n k m FLOPs."""
    return OpCall("mm", (Tensor((n, k), dtype, (k, 1), device), Tensor((k, m), dtype, (m, 1), device)), (Tensor((n, m), dtype, (m, 1), device),), **more)


def op_row(name="aten::mm", shapes="[[64, 64], [64, 64]]", types='["float", "float"]', count=1, own=1000, kernels=1):
    return OpRow(name, shapes, "", types, count, own, own, own, own, kernels)


def kernel(name, ns, category="matmul", tensor_cores=False, op="aten::mm"):
    return KernelRow(name, category, 1, ns, ns, ns, 0.0, tensor_cores, False, False, 1, (Caller(op, 1, ns),))


def traced(kernels=(), ops=(), device="NVIDIA A100-SXM4-80GB", steps=()):
    return RankAnalysis(0, 1, "made by hand", {"0": device}, device_events=1, kernels_ns=sum(k.total_ns for k in kernels), kernels=tuple(kernels),
                        ops=tuple(ops), steps=tuple(steps))


@lru_cache
def real(name):
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"needs {path} ($PERFSCOPE_DATA)")
    return analyze_files(path, cache=False).ranks[0]


def from_elsewhere(trace):
    return Evidence(Config("cuda"), trace=trace)


# ---------------------------------------------------------------- what the probes share

class Zoo(nn.Module):
    """A 2-d, a transposed, a 1-d and a 3-d convolution, a linear layer and batched matmuls."""

    def __init__(self, groups):
        super().__init__()
        self.conv, self.up = nn.Conv2d(8, 16, 3, groups=groups), nn.ConvTranspose2d(16, 4, 4, stride=2)
        self.line, self.cube = nn.Conv1d(4, 6, 5), nn.Conv3d(1, 2, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        y = self.up(self.conv(x))
        z = self.cube(y[:, None]).flatten(1).mean(1)
        y = self.line(y.flatten(2)[..., :16])
        return self.head(torch.bmm(y, y.transpose(1, 2)).flatten(1)[:, :12]) + z[:, None]


@pytest.mark.parametrize("groups", [1, 4])
def test_flops_of_calls_are_those_that_pytorch_counts(groups):
    """But for the weight gradient of a grouped convolution, which PyTorch does not divide by the groups (measure/floor.py)."""
    workload = replace(contract.subject("conv"), model=Zoo(groups), dtype="float32", memory_format="contiguous",
                       batch=lambda n: (torch.randn(n, 8, 8, 8), torch.randint(0, 5, (n,))))
    prepared = step.prepare(workload)
    batches = step.load_batches(prepared, 4)
    variant = full_step(prepared, batches)
    with variant, FlopCounterMode(display=False) as counter:
        variant.step()
    counted = [o for o in contract.evidence_of(workload, 4).ops if o.flops]
    assert {o.name for o in counted} >= {"convolution", "convolution_backward", "bmm", "mm", "addmm"}
    grouped = 2 * 4 * 16 * 6 * 6 * (8 // groups) * 9                        # one direction of `conv`
    assert sum(o.flops for o in counted) == counter.get_total_flops() - grouped * (groups - 1)


def test_a_setting_comes_back_also_after_an_error():
    mkldnn = torch.backends.mkldnn
    assert mkldnn.enabled
    with pytest.raises(ValueError), setting(mkldnn, enabled=False)():
        assert not mkldnn.enabled
        raise ValueError
    assert mkldnn.enabled


def test_questions_are_asked_and_layers_timed_within_the_workloads_own_contexts():
    evidence = contract.evidence_of(add(contract.subject("conv"), contexts=[setting(torch.backends.mkldnn, enabled=False)]))
    call = next(evidence.calls("convolution"))
    assert evidence.backend("convolution_call", call) == "Slow2d" and torch.backends.mkldnn.enabled
    seen = []
    evidence.alone(lambda: seen.append(torch.backends.mkldnn.enabled), lambda: None)
    assert set(seen) == {False} and torch.backends.mkldnn.enabled


TF32_STATES = {
    "default": lambda b: None,
    "legacy high": lambda b: torch.set_float32_matmul_precision("high"),
    "legacy medium": lambda b: torch.set_float32_matmul_precision("medium"),
    "legacy off": lambda b: (torch.set_float32_matmul_precision("highest"), setattr(b.cudnn, "allow_tf32", False)),
    "new ieee": lambda b: (setattr(b.cuda.matmul, "fp32_precision", "ieee"), setattr(b.cudnn.conv, "fp32_precision", "ieee")),
    "new tf32": lambda b: setattr(b, "fp32_precision", "tf32"),
}


def tf32_state():
    b = torch.backends

    def get(owner, name):
        try:
            return getattr(owner, name)
        except RuntimeError:
            return "mixed"
    return (get(b, "fp32_precision"), *(get(o, "fp32_precision") for o in (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul)),
            get(b.cuda.matmul, "allow_tf32"), get(b.cudnn, "allow_tf32"))


@pytest.fixture
def tf32_switches():
    before = tf32_state()
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert tf32_state() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has no fp32_precision before 2.9")
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("state", TF32_STATES)
def test_tf32_is_set_and_every_switch_comes_back(state, on, tf32_switches):
    TF32_STATES[state](torch.backends)
    before = tf32_state()
    with precision.tf32(on):
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is on
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is on
    assert tf32_state() == before


# ---------------------------------------------------------------- TF32

DEFAULT = {"float32_matmul_precision": "highest", "matmul.allow_tf32": False, "matmul.fp32_precision": "none", "cudnn.allow_tf32": True,
           "cudnn.conv.fp32_precision": "tf32"}


def on_gpu(ops, capability=(8, 0), name="NVIDIA A100-SXM4-80GB", **more):
    return Evidence(Config("cuda", name, capability, torch="2.13.0", **more), ops=tuple(ops))


@pytest.mark.parametrize("capability,name,fires", [((8, 0), "NVIDIA A100", True), ((12, 0), "NVIDIA RTX 5090", True), ((7, 5), "Tesla T4", False),
                                                   ((7, 0), "Tesla V100", False), ((9, 4), "AMD Instinct MI300X", False), ((0, 0), "", False)])
def test_tf32_needs_ampere(capability, name, fires):
    assert bool(found("tf32_off", on_gpu([mm(device="cuda")], capability, name, switches=DEFAULT))) is fires


CONV = OpCall("convolution", (Tensor((8, 16, 8, 8), "float32", (1024, 64, 8, 1), "cuda"), Tensor((16, 16, 3, 3), "float32", (144, 9, 3, 1), "cuda")),
              (Tensor((8, 16, 8, 8), "float32", (1024, 64, 8, 1), "cuda"),))


@pytest.mark.parametrize("ops,switches,fires", [
    ([CONV], {}, False),                                                                            # on by default for convolutions
    ([CONV], {"cudnn.allow_tf32": False, "cudnn.conv.fp32_precision": "none"}, True),
    ([CONV], {"cudnn.allow_tf32": None, "cudnn.conv.fp32_precision": "ieee"}, True),                # both kinds of switches were used
    ([mm(device="cuda")], {"matmul.allow_tf32": None, "matmul.fp32_precision": "tf32"}, False),
    ([mm(device="cuda")], {"matmul.fp32_precision": None, "matmul.allow_tf32": False}, True),       # before torch 2.9
    ([mm(device="cuda")], {"matmul.fp32_precision": None, "matmul.allow_tf32": None}, False),       # not known
    ([mm("bfloat16", device="cuda")], {}, False),
    ([mm(device="cuda"), *[mm("bfloat16", device="cuda")] * 10], {}, False),                        # 1/11 of the arithmetic
    ([mm(device="cuda"), *[mm("bfloat16", device="cuda")] * 9], {}, True),                          # 1/10
])
def test_tf32_switches_and_share_of_the_arithmetic(ops, switches, fires):
    assert bool(found("tf32_off", on_gpu(ops, switches={**DEFAULT, **switches}))) is fires


def test_tf32_in_a_trace():
    sgemm = kernel("ampere_sgemm_128x64_tn", 10)
    assert found("tf32_off", from_elsewhere(traced([sgemm, kernel("elementwise", 990, "elementwise", None)])))[0].share == pytest.approx(0.01)
    assert not found("tf32_off", from_elsewhere(traced([sgemm, kernel("elementwise", 991, "elementwise", None)])))
    assert not found("tf32_off", from_elsewhere(traced([kernel("volta_sgemm_64x64_nt", 10)])))
    assert not found("tf32_off", from_elsewhere(traced([sgemm], device="Tesla V100-SXM2-32GB")))
    stem = kernel("cudnn_infer_ampere_scudnn_128x64_relu_xregs_large_nn_v1", 10, "convolution", op="aten::cudnn_convolution")
    other = kernel("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32", 90, "convolution", True, "aten::cudnn_convolution")
    assert found("tf32_off", from_elsewhere(traced([stem])))
    assert not found("tf32_off", from_elsewhere(traced([stem, other]))), "cuDNN could have taken TF32 and did not want to"


@pytest.mark.parametrize("name", ["a100-resnet50-ddp-nchw.json.gz", "v100-resnet50-fp32.json.gz", "mi300x-resnet-ddp-checkpointing.json.gz"])
def test_tf32_is_silent_on_real_traces(name):
    """On the A100 the last layer's matmuls are sgemm: 0.1 % of the kernels' time."""
    assert not found("tf32_off", from_elsewhere(real(name)))


# ---------------------------------------------------------------- mixed precision

@pytest.mark.parametrize("sets,fires", [(BF16, True), (("avx2", "avx512f"), False), ((), False), (("asimd", "bf16"), True), (("amx_tile", "amx_bf16"), True)])
def test_mixed_precision_asks_the_processor(sets, fires):
    assert bool(found("no_mixed_precision", Evidence(Config(instruction_sets=sets, torch="2.13.0"), ops=(mm(),)))) is fires


@pytest.mark.parametrize("capability,cure", [((6, 1), None), ((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_mixed_precision_asks_the_gpu(capability, cure):
    seen = found("no_mixed_precision", on_gpu([mm(device="cuda")], capability, "NVIDIA"))
    assert [f.evidence["fast"][0] for f in seen] == ([cure] if cure else [])
    assert all(("GradScaler" in f.cure) is (cure == "float16") for f in seen)


def on_cpu(*ops, trace=None):
    return Evidence(Config(instruction_sets=BF16, torch="2.13.0"), ops=ops, trace=trace)


def test_mixed_precision_only_where_float32_is_most_of_the_arithmetic():
    assert found("no_mixed_precision", on_cpu(mm(), mm("bfloat16")))
    assert not found("no_mixed_precision", on_cpu(mm(), mm("bfloat16"), mm("bfloat16", n=1)))
    assert not found("no_mixed_precision", on_cpu(mm("float64")))
    assert not found("no_mixed_precision", on_cpu())


def test_mixed_precision_only_where_arithmetic_is_a_substantial_part():
    """With a trace by time, from a fifth on; without one by FLOP per byte, from 1 on; 4 are enough on a CPU."""
    call = mm(n=16, k=16, m=16)                                             # 8192 FLOP on 3072 bytes
    beside = lambda n: OpCall("tanh", (Tensor((n,), "float32", (1,)),))     # noqa: E731
    for own, fires in ((200, True), (199, False)):
        trace = RankAnalysis(0, 1, "", ops=(op_row(own=own), op_row("aten::tanh", own=1000 - own)))
        assert bool(found("no_mixed_precision", on_cpu(call, trace=trace))) is fires
        assert found("no_mixed_precision", on_cpu(mm(n=24, k=24, m=24), trace=trace)), "4 FLOP per byte"
        assert bool(found("no_mixed_precision", on_cpu(mm(n=23, k=23, m=23), trace=trace))) is fires
        assert bool(found("no_mixed_precision", replace(on_gpu([mm(device="cuda")]), trace=replace(trace, device_events=1)))) is fires
    assert found("no_mixed_precision", on_cpu(call, beside((8192 - 3072) // 4)))
    assert not found("no_mixed_precision", on_cpu(call, beside((8192 - 3072) // 4 + 1)))


@pytest.mark.parametrize("name,fast", [("a100-resnet50-ddp-nchw.json.gz", "bfloat16"), ("v100-resnet50-fp32.json.gz", "float16"),
                                       ("v100-resnet50-loader-in-process.json.gz", "float16"), ("mi300x-resnet-ddp-checkpointing.json.gz", None),
                                       ("h100-nanogpt-8ranks/rank0.json.gz", None)])
def test_mixed_precision_in_real_traces(name, fast):
    path = TRACES / name
    if "rank0" in name and not path.exists() and path.parent.exists():
        name = str(sorted(path.parent.iterdir())[0].relative_to(TRACES))
    assert [f.evidence["fast"][0] for f in found("no_mixed_precision", from_elsewhere(real(name)))] == ([fast] if fast else [])


def test_mixed_precision_cure_keeps_the_numbers():
    ill = probe("no_mixed_precision").plant(contract.subject("conv"))
    assert numerics.compare(ill, probe("no_mixed_precision").fix(ill), device="cpu", batch_size=8).passed


@pytest.mark.parametrize("dtype,sets,fires", [
    ("bfloat16", ("avx2", "avx512f"), True), ("bfloat16", BF16, False), ("bfloat16", (), False), ("bfloat16", ("asimd", "bf16"), False),
    ("float16", BF16, True), ("float16", (*BF16, "avx512_fp16"), False), ("float16", ("asimd", "asimdhp"), False), ("float32", ("avx2",), False)])
def test_low_precision_goes_by_the_instruction_sets(dtype, sets, fires):
    evidence = Evidence(Config(instruction_sets=sets, torch="2.13.0"), ops=(mm(dtype),))
    assert bool(found("low_precision_without_hardware", evidence)) is fires


def test_low_precision_has_to_be_a_tenth_of_the_arithmetic():
    calls = lambda n: Evidence(Config(instruction_sets=("avx2",), torch="2.13.0"), ops=(mm("float16"), *[mm()] * n))  # noqa: E731
    assert found("low_precision_without_hardware", calls(9)) and not found("low_precision_without_hardware", calls(10))


# ---------------------------------------------------------------- float64

def with_model(change, **fields):
    return add(replace(contract.subject("conv"), **fields), on_model=[change])


class Scaled(nn.Module):
    """A layer whose scale is a plain attribute, as mean and deviation often are."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale = inner, torch.ones(1, dtype=torch.float64).expand(16).clone().view(16, 1, 1)

    def forward(self, x):
        y = self.inner(x)
        return (y * self.scale).to(y.dtype)


def attribute(model):
    model.norm1 = Scaled(model.norm1)


def made_in_forward(model):
    model.norm1.register_forward_hook(lambda m, args, out: (out.double() * 2).to(out.dtype))


def regression():
    """float64 targets, as NumPy gives them, on an output that is as large as the image."""
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(x)
    return replace(contract.subject("conv"), model=Same(), loss=nn.MSELoss(), batch=lambda n: (torch.randn(n, 8, 16, 16), torch.randn(n, 8, 16, 16).double()))


CURABLE = {"a buffer": lambda: probe("float64_leak").plant(contract.subject("conv")), "an attribute": lambda: with_model(attribute), "the target": regression,
           "the whole model": lambda: with_model(lambda m: m.double(), dtype="float32", memory_format="contiguous",
                                                 batch=lambda n: (torch.randn(n, 8, 16, 16).double(), torch.randint(0, 16, (n,))))}


@pytest.mark.parametrize("case", CURABLE)
def test_float64_is_found_and_cured(case):
    ill = CURABLE[case]()
    seen = found("float64_leak", contract.evidence_of(ill))
    assert len(seen) == 1 and not seen[0].extra.get("hint")
    assert (seen[0].text.startswith("the whole model") and bool(seen[0].note)) is (case == "the whole model")
    cured = probe("float64_leak").fix(ill)
    after = contract.evidence_of(cured)
    assert not [t for o in after.ops for t in o.outputs if t.dtype == "float64" and t.numel > 1]


def test_float64_names_the_buffer():
    (f,) = found("float64_leak", contract.evidence_of(CURABLE["a buffer"]()))
    assert any(p.where.startswith("norm1") and "norm1.scale" in p.saw for p in f.places)


def test_float64_made_by_the_forward_is_a_hint_with_the_line():
    (f,) = found("float64_leak", contract.evidence_of(with_model(made_in_forward)))
    assert f.extra["hint"] and any("test_probes_precision.py" in p.where and "_to_copy" in p.saw for p in f.places)


def test_float64_cure_of_a_loss_leaves_the_given_loss_alone():
    loss = nn.CrossEntropyLoss(weight=torch.ones(16, dtype=torch.float64))
    cured = probe("float64_leak").fix(replace(contract.subject("conv"), loss=loss))
    assert cured.loss.weight.dtype == torch.float32 and loss.weight.dtype == torch.float64


def test_float64_numbers_and_small_remainders_do_not_count():
    value = OpCall("mul", (Tensor((), "float64"),), (Tensor((1,), "float64", (1,)),))
    assert not found("float64_leak", Evidence(ops=(value,)))
    floats = lambda n: OpCall("mul", (), (Tensor((n,), "float32", (1,)),))                  # noqa: E731
    double = OpCall("mul", (), (Tensor((50,), "float64", (1,)),))                           # 400 bytes
    assert found("float64_leak", Evidence(ops=(double, floats(9900)))) and not found("float64_leak", Evidence(ops=(double, floats(9901))))


def test_float64_in_a_trace():
    wide, number = op_row(types='["double", "double"]', own=10), op_row("aten::mul_", "[[64], []]", '["float", "double"]', own=500)
    assert found("float64_leak", from_elsewhere(traced(ops=[wide, number, op_row(own=490)])))[0].share == pytest.approx(0.01)
    assert not found("float64_leak", from_elsewhere(traced(ops=[wide, number, op_row(own=500)])))
    assert not found("float64_leak", from_elsewhere(real("v100-resnet50-loader-in-process.json.gz")))


# ---------------------------------------------------------------- convolutions

def conv_subject(layer, batch=8, **fields):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x).flatten(1)[:, :16]
    return replace(contract.subject("conv"), model=Net(), dtype="float32", memory_format="contiguous", **fields)


@pytest.mark.parametrize("layer,off,batch,condition", [
    (nn.Conv2d(8, 16, 3), False, 8, None),
    (nn.Conv2d(8, 16, 3), True, 8, "oneDNN is switched off"),
    (nn.Conv2d(8, 16, 3, dilation=2), True, 8, "oneDNN is switched off"),
    (nn.Conv2d(8, 16, 1), False, 1, None),                      # PyTorch means well: its own kernel is faster for one small image
    (nn.ConvTranspose2d(8, 16, 3, stride=2, output_padding=1), False, 8, None),
    (nn.ConvTranspose2d(8, 16, 3, dilation=3, output_padding=2), False, 8, "output_padding"),
], ids=str)
def test_slow_convolution_names_the_condition(layer, off, batch, condition):
    workload = conv_subject(layer)
    evidence = contract.evidence_of(probe("slow_convolution").plant(workload) if off else workload, batch)
    seen = found("slow_convolution", evidence)
    assert [condition in f.text for f in seen] == ([True] if condition else [])
    assert all(f.extra.get("hint", False) is not off for f in seen)
    assert torch.backends.mkldnn.enabled


def test_slow_convolution_leaves_float64_and_half_to_other_probes():
    assert not found("slow_convolution", contract.evidence_of(CURABLE["the whole model"]()))
    assert not found("slow_convolution", contract.evidence_of(replace(contract.subject("conv"), dtype="amp-half", scaler=False)))


@pytest.mark.parametrize("config,image,condition", [
    ({"switches": {"cudnn.enabled": False}}, (8, 8, 16, 16), "cuDNN is switched off"),
    ({"cudnn": 91002, "torch": "2.9.1"}, (8, 8, 4, 16, 16), "keeps 3-d convolutions in bfloat16 from cuDNN 91002"),
    ({"cudnn": 91500}, (8, 8, 4, 16, 16), "does not name")])
def test_slow_convolution_on_a_gpu(config, image, condition):
    call = OpCall("convolution", (Tensor(image, "bfloat16", (1,) * len(image), "cuda"), Tensor((8, 8, *[3] * (len(image) - 2)), "bfloat16", (), "cuda")),
                  (Tensor(image, "bfloat16", (), "cuda"),), {"transposed": False})
    evidence = Evidence(Config("cuda", **config), ops=(call,), backend=lambda *a, **k: "SlowDilated3d")
    (f,) = found("slow_convolution", evidence)
    assert condition in f.text and f.evidence["backends"] == ["SlowDilated3d"]


def test_slow_convolution_in_a_trace():
    rows = [op_row("aten::slow_conv_dilated3d", "[]", "[]", own=100)]
    column = kernel("void at::native::vol2col_kernel<c10::Half>(long, c10::Half const*, int)", 60, "other", None, "aten::slow_conv_dilated3d")
    (f,) = found("slow_convolution", from_elsewhere(traced([column, kernel("gemm", 40)], rows)))
    assert f.extra["hint"] and f.evidence["kernels"] == [column.name]
    assert not found("slow_convolution", from_elsewhere(real("v100-resnet50-loader-in-process.json.gz"))), "cuDNN has an im2col kernel of its own"


def test_slow_convolution_cure_gives_back_the_numbers():
    healthy = contract.subject("conv")
    cured = probe("slow_convolution").fix(probe("slow_convolution").plant(healthy))
    assert losses(cured) == losses(healthy)


def losses(workload, steps=3):
    """Losses of some steps at a learning rate that changes the weights."""
    torch.manual_seed(0)
    prepared = step.prepare(workload)
    for group in prepared.optimizer.param_groups:
        group["lr"] = 1e-2
    batches = step.load_batches(prepared, 8)
    order = step.present_parts(prepared, batches)
    variant = step.make_variant(prepared, batches, order, order)
    with variant:
        return [float(variant.step()) for _ in range(steps)]


def test_depthwise():
    module = probe("depthwise_off_cudnn")
    ops = [op_row("aten::_conv_depthwise2d", "[]", "[]")]
    name = "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>"
    assert found("depthwise_off_cudnn", from_elsewhere(traced([kernel(name, 10, "convolution"), kernel("gemm", 990)], ops)))[0].share == pytest.approx(0.01)
    assert not found("depthwise_off_cudnn", from_elsewhere(traced([kernel(name, 10, "convolution"), kernel("gemm", 991)], ops)))
    assert list(module.CURES) == ["channels_last", "cudnn"]
    if not hasattr(torch.backends.cudnn, "depthwise_kernel"):
        with pytest.raises(ValueError, match="2.13"):
            module.CURES["cudnn"](contract.subject("conv"))
        return
    cured = module.CURES["cudnn"](contract.subject("conv"))
    with cured.contexts[-1]():
        assert torch.backends.cudnn.depthwise_kernel == "cudnn"
    assert torch.backends.cudnn.depthwise_kernel == "auto"


@pytest.mark.parametrize("name", ["cudnn_benchmark_off", "cudnn_benchmark_with_varying_shapes", "tf32_off", "depthwise_off_cudnn"])
def test_what_is_planted_for_a_gpu_runs_and_leaves_no_switch_behind(name):
    """It runs on a CPU, where it is no disease: so that the first GPU run does not die of a typing error."""
    from perfscope.measure import machine
    before = machine.switches()
    for workload in (probe(name).plant(contract.subject("conv")), *(c(contract.subject("conv")) for c in cures(probe(name)))):
        assert contract.evidence_of(workload).ops
    assert machine.switches() == before


def cures(module):
    return module.CURES.values() if hasattr(module, "CURES") else [module.fix]


# ---------------------------------------------------------------- benchmark mode

def benchmarking(on, backend="Cudnn", **more):
    return replace(on_gpu([CONV], switches={"cudnn.benchmark": on, "cudnn.enabled": True}, **more), backend=lambda *a, **k: backend)


def test_benchmark_off():
    name = "cudnn_benchmark_off"
    assert found(name, benchmarking(False)) and not found(name, benchmarking(True)) and not found(name, benchmarking(None))
    assert not found(name, benchmarking(False, "CudaDepthwise2d")), "not cuDNN's"
    assert not found(name, benchmarking(False, loader={"shapes": 2, "batches": 3}))
    assert not found(name, replace(benchmarking(False), ops=(mm(device="cuda"),)))
    for own, fires in ((200, True), (199, False)):
        trace = traced(ops=[op_row("aten::cudnn_convolution", own=own), op_row("aten::relu", own=1000 - own)])
        assert bool(found(name, replace(benchmarking(False), trace=trace))) is fires


def test_benchmark_with_varying_shapes():
    name = "cudnn_benchmark_with_varying_shapes"
    assert found(name, benchmarking(True, loader={"shapes": 3, "batches": 3}))
    assert not found(name, benchmarking(True, loader={"shapes": 1, "batches": 3})) and not found(name, benchmarking(True))
    assert not found(name, benchmarking(False, loader={"shapes": 3, "batches": 3}))
    assert not found(name, replace(benchmarking(True, loader={"shapes": 3, "batches": 3}), ops=(mm(device="cuda"),))), "no convolution"


def test_shapes_that_come_and_go_in_a_trace():
    steps = [Step(*(f"ProfilerStep#{i}" if f.name == "name" else 0 for f in Step.__dataclass_fields__.values())) for i in range(3)]

    def conv(side, count):
        return op_row("aten::convolution", f"[[8, 3, {side}, {side}], [16, 3, 3, 3], []]", '["float", "float", "GenericList"]', count)
    seen = lambda *rows: found("cudnn_benchmark_with_varying_shapes", replace(benchmarking(True), trace=traced(ops=rows, steps=steps)))  # noqa: E731
    assert seen(conv(32, 1), conv(28, 1), conv(24, 1))[0].evidence["passing_shapes"] == 3
    assert not seen(conv(32, 3), conv(28, 3)), "one layer on two sizes, in every step"
    assert seen(conv(32, 2), conv(28, 1)), "one size in two steps, another one in the third"
    assert not seen(conv(32, 3), conv(28, 1)), "one smaller batch"


def test_the_planted_pipeline_has_batches_of_several_shapes():
    planted = probe("cudnn_benchmark_with_varying_shapes").plant(contract.subject("conv"))
    config = contract.evidence_of(planted).config
    assert config.loader["shapes"] == config.loader["batches"] == 3 and config.switches["cudnn.benchmark"] is True


# ---------------------------------------------------------------- deterministic mode, casts, scaler

def test_deterministic_mode():
    name = "deterministic_mode"
    assert not found(name, Evidence(Config("cpu", switches={"cudnn.deterministic": True}))), "cuDNN is no matter of a CPU"
    assert found(name, Evidence(Config("cuda", switches={"cudnn.deterministic": True})))
    assert not found(name, Evidence(Config("cuda", switches={}, variables={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}))), "it costs nothing by itself"
    (f,) = found(name, contract.evidence_of(probe(name).plant(contract.subject("transformer"))))
    assert "embedding_dense_backward" in f.places[0].saw
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def cast(parameter, phase="forward", to="bfloat16"):
    return OpCall("_to_copy", (Tensor((64, 64), "float32", (64, 1), parameter=parameter),), (Tensor((64, 64), to, (64, 1)),), phase=phase)


def test_cast_storm_counts_what_is_cast_again():
    storm = lambda *ops: found("cast_storm", Evidence(ops=ops))                             # noqa: E731
    assert storm(cast("w"), cast("w"), *[mm()] * 48) and not storm(cast("w"), cast("w"), *[mm()] * 49)      # 2 % of 50, less of 51
    assert not storm(cast("w"), cast("v")) and not storm(cast(""), cast(""))
    assert not storm(cast("w"), cast("w", "backward")), "checkpointing casts again"
    assert not storm(cast("w"), cast("w", to="float16")), "to different types"
    assert not storm(cast("w", to="float32"), cast("w", to="float32")), "a copy, no cast"


def test_cast_storm_cure_never_uses_old_weights():
    """Autocast's copies have to go when the optimizer has changed the parameters: the losses of several steps tell."""
    ill = probe("cast_storm").plant(contract.subject("transformer"))
    before, cured = losses(ill, 4), losses(probe("cast_storm").fix(ill), 4)
    assert cured == pytest.approx(before, abs=0.05) and before[0] - before[-1] > 0.5        # bfloat16 sums of gradients differ a little


def test_grad_scaler():
    name = "grad_scaler_not_needed"
    scaled = lambda dtype, *ops: found(name, Evidence(Config(dtype=dtype, scaler=True, torch="2.13.0"), ops=ops))   # noqa: E731
    assert scaled("amp-bfloat16") and scaled("float32", mm()) and scaled("bfloat16")
    assert not scaled("amp-half") and not scaled("half") and not scaled("float32", mm("float16")), "half by the model's own autocast"
    assert not found(name, Evidence(Config(dtype="amp-bfloat16", torch="2.13.0")))


def test_float32_ops_under_autocast():
    name = "float32_ops_under_autocast"
    low, soft = op_row(types='["c10::Half", "c10::Half"]', own=850), op_row("aten::_softmax", "[[8, 64], [], []]", '["float", "Scalar", "Scalar"]', own=150)
    assert found(name, from_elsewhere(traced(ops=[low, soft])))[0].share == pytest.approx(0.15)
    assert not found(name, from_elsewhere(traced(ops=[replace(low, device_self_ns=851), soft])))
    assert not found(name, from_elsewhere(traced(ops=[op_row(own=850), soft]))), "float32 all through: no autocast"


def test_cures_do_not_change_the_given_optimizer_or_loss():
    workload = contract.subject("conv")
    loss = copy.deepcopy(workload.loss.state_dict())
    for name in ("cast_storm", "float64_leak", "tf32_off"):
        cured = probe(name).fix(workload)
        assert cured is not workload and cured.optimizer is workload.optimizer and workload.on_optimizer == () and len(workload.contexts) == 1
    assert workload.loss.state_dict() == loss
