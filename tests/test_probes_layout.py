"""The probes of norms and layouts: what decides, from both sides of each threshold; real traces; what the cures do to the numbers."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perfscope import contract, registry
from perfscope.evidence import layers, norms
from perfscope.measure.stats import Interval
from perfscope.probe import Config, Evidence, ModuleCall, OpCall, Tensor
from perfscope.trace.analysis import analyze_files
from perfscope.workload import Workload
from perfscope.workload.data import image_batch

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="$PERFSCOPE_DATA has no traces")
H100 = Config("cuda", "NVIDIA H100", (9, 0), torch="2.13.0", memory_format="channels_last", switches={"cudnn.enabled": True, "cudnn.allow_tf32": True})
NORM_PROBES = ("half_batch_norm_off_cudnn", "bfloat16_batch_norm", "batch_norm_off_cudnn", "batch_norm_not_persistent")


def probe(name):
    return registry.load("probes", name)


def fired(name, evidence):
    return list(probe(name).detect(evidence))


def dense(shape, layout="contiguous"):
    made = torch.empty(shape, device="meta")
    return tuple(made.to(memory_format=torch.channels_last).stride() if layout == "channels_last" else made.stride())


def tensor(shape, dtype="float32", layout="contiguous", **more):
    return Tensor(tuple(shape), dtype, dense(shape, layout), "cuda", **{"requires_grad": True, **more})


def norm(shape=(64, 16, 8, 8), given="float32", weights="float32", *, layout="channels_last", statistics=True, path="norm", kind="BatchNorm2d", **more):
    vector = Tensor((shape[1],), weights or "float32", (1,), "cuda", requires_grad=True)
    names = (("weight", "bias") if weights else ()) + (("running_mean", "running_var") if statistics else ())
    x = tensor(shape, given, layout if len(shape) == 4 else "contiguous")
    return ModuleCall(path, kind, (x,), (x,), {n: vector for n in names}, **more)


def conv(path="conv", x=(8, 16, 8, 8), weight=(32, 16, 3, 3), dtype="float32", layouts=("contiguous", "contiguous", "contiguous"), **args):
    y = (x[0], weight[0], x[2], x[3])
    return ModuleCall(path, "Conv2d", (tensor(x, dtype, layouts[0]),), (tensor(y, dtype, layouts[2]),), {"weight": tensor(weight, dtype, layouts[1])},
                      args={"groups": 1, **args})


def timed(before_s, ratio, low, high):
    """Evidence.alone with a known answer."""
    return lambda a, b: (before_s, before_s * ratio, Interval(math.log(ratio), math.log(low), math.log(high)))


# ---------------------------------------------------------------- batch norm: the table of SLOW_PATHS

@pytest.mark.parametrize("call, why", [
    (norm(), ()),
    (norm(given="float16"), ()),
    (norm(given="float16", weights="float16"), ("half weights",)),
    (norm(given="bfloat16"), ("bfloat16",)),
    (norm(given="bfloat16", weights="bfloat16"), ("bfloat16",)),
    (norm(weights=None), ("no weights",)),
    (norm((64, 16), kind="BatchNorm1d"), ("2-d",)),
    (norm((64, 16, 8), kind="BatchNorm1d"), ()),
    (norm(statistics=False), ()),
    (norm(statistics=False, training=False), ()),                       # F.batch_norm is told training=True without statistics
    (norm(training=False), ("evaluation",)),
    (norm((880_801, 1, 1, 1)), ()),
    (norm((880_802, 1, 1, 1)), ("too many samples",)),
    (norm((65_536, 1, 1, 1), training=False), ("too many samples", "evaluation")),
    (norm((2**15 - 1, 2**16, 1, 1)), ()),
    (norm((2**15, 2**16, 1, 1)), ("too large",)),
])
def test_what_keeps_a_batch_norm_from_cudnn(call, why):
    assert norms.broken(call) == why


def test_each_reason_is_one_probe_s_business():
    cases = {"half_batch_norm_off_cudnn": norm(given="float16", weights="float16"),
             "bfloat16_batch_norm": norm(given="bfloat16"),
             "batch_norm_off_cudnn": norm(weights=None), "batch_norm_not_persistent": norm(given="float16", layout="contiguous")}
    for name, call in cases.items():
        assert [p for p in NORM_PROBES if fired(p, Evidence(H100, modules=(call,)))] == [name]
    assert not any(fired(p, Evidence(H100, modules=(norm(), norm(given="float16")))) for p in NORM_PROBES)
    off = replace(H100, switches={"cudnn.enabled": False})
    assert [p for p in NORM_PROBES if fired(p, Evidence(off, modules=(norm(given="float16", weights="float16"),)))] == ["batch_norm_off_cudnn"]


def test_frozen_and_oversized_norms_are_hints_and_each_reason_its_own_finding():
    found = fired("batch_norm_off_cudnn", Evidence(H100, modules=(norm(path="a", training=False), norm(path="b", weights=None), norm(path="c", weights=None))))
    seen = [(f.evidence["reason"], [p.where for p in f.places], f.extra) for f in found]
    assert seen == [("evaluation", ["a"], {"hint": True}), ("no weights", ["b", "c"], {})]


def test_what_ran_and_what_pytorch_says_win_over_the_rules():
    call = norm(given="float16", weights="float16")
    ran = OpCall("cudnn_batch_norm", call.inputs, call.outputs, module="norm")
    assert not fired("half_batch_norm_off_cudnn", Evidence(H100, modules=(call,), ops=(ran,)))
    found = fired("half_batch_norm_off_cudnn", Evidence(H100, modules=(call,), ops=(replace(ran, name="native_batch_norm"),)))
    assert "Native (ran), a half input needs float32 weights" in found[0].places[0].saw
    assert "by PyTorch's rules" in fired("half_batch_norm_off_cudnn", Evidence(H100, modules=(call,)))[0].places[0].saw


def test_synchronised_norms_have_no_choice():
    assert not any(fired(p, Evidence(H100, modules=(norm(given="bfloat16", kind="SyncBatchNorm"),))) for p in NORM_PROBES)
    synchronised = layers.trace_of(("void at::native::batch_norm_collect_statistics_kernel<at::native::InvStd, c10::BFloat16, c10::BFloat16, float, int>",
                                    10, 10**6, "aten::batch_norm_stats"))
    assert norms.native_norms(synchronised, lambda given, weights: True) is None


def test_bfloat16_says_so_if_no_candidate_is_faster_alone(monkeypatch):
    answer = {"slower": Interval(-0.1, -0.2, -0.05), "unclear": Interval(0.0, -0.1, 0.1)}
    for word, interval in answer.items():
        monkeypatch.setattr(layers, "saved", lambda *args, interval=interval: interval)
        (found,) = fired("bfloat16_batch_norm", Evidence(H100, modules=(norm(given="bfloat16"),)))
        assert bool(found.note) == (word == "slower") and found.evidence["alone"]["channels_last"] == [interval.point, interval.low, interval.high]


@pytest.mark.parametrize("name, kernel, fires", [
    ("half_batch_norm_off_cudnn", "void at::native::batch_norm_backward_kernel<c10::Half, c10::Half, float, int>", True),
    ("half_batch_norm_off_cudnn", "void at::native::batch_norm_backward_kernel<c10::Half, float, float, int>", False),
    ("half_batch_norm_off_cudnn", "void at::native::batch_norm_transform_input_channels_last_kernel<c10::Half, float, c10::Half, 4>", True),
    ("half_batch_norm_off_cudnn", "void at::native::batch_norm_transform_input_channels_last_kernel<c10::Half, float, float, 4>", False),
    ("bfloat16_batch_norm", "void at::native::batch_norm_collect_statistics_channels_last_kernel<at::native::Var, c10::BFloat16, float, 4>", True),
    ("bfloat16_batch_norm", "void at::native::batch_norm_backward_kernel<float, float, float, int>", False),
    ("batch_norm_not_persistent", "void cudnn::bn_fw_tr_1C11_kernel_NCHW<__half, float, int, 512, true, 1, true>(cudnnTensorStruct)", True),
    ("batch_norm_not_persistent", "void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512, true, 1, true>(cudnnTensorStruct)", False),
])
def test_norms_by_their_kernels_alone(name, kernel, fires):
    trace = layers.trace_of((kernel, 20, 3 * 10**6), ("sm90_xmma_gemm", 10, 7 * 10**6))
    found = fired(name, Evidence(Config("cuda"), trace=trace))
    assert [f.share for f in found] == ([pytest.approx(0.3)] if fires else [])


# ---------------------------------------------------------------- layouts

def test_convolutions_count_by_device_precision_and_part_of_the_arithmetic():
    def on(capability=(9, 0), dtype="float32", tf32=True, **more):
        c = replace(H100, memory_format="contiguous", capability=capability, switches={"cudnn.allow_tf32": tf32}, **more)
        return bool(fired("conv_not_channels_last", Evidence(c, modules=(conv(dtype=dtype),))))
    assert on() and on((7, 0), "float16") and on((8, 0), "bfloat16") and on((0, 0), device="cpu")
    assert not on((7, 0)) and not on(tf32=False) and not on((6, 1), "float16") and not on(dtype="float64")
    x, w = tensor((8, 16, 8, 8)), tensor((32, 16, 3, 3))
    small = OpCall("convolution", (x, w), (tensor((8, 32, 8, 8)),), {"groups": 1}, module="conv")
    for times, fires in ((90, True), (110, False)):
        big = OpCall("mm", (Tensor((small.flops // 2 * times, 1)), Tensor((1, 1))), module="head")
        assert bool(fired("conv_not_channels_last", Evidence(replace(H100, memory_format="contiguous"), modules=(conv(),), ops=(small, big)))) == fires


def test_an_image_of_one_channel_does_not_hide_a_contiguous_convolution():
    first = conv("conv1", (8, 1, 28, 28), (24, 1, 5, 5))
    assert first.inputs[0].layout == first.parameters["weight"].layout == "both"
    c = replace(H100, memory_format="contiguous")
    assert [p.where for p in fired("conv_not_channels_last", Evidence(c, modules=(first,)))[0].places] == ["conv1"]
    assert not fired("conv_not_channels_last", Evidence(c, modules=(replace(first, outputs=(tensor((8, 24, 28, 28), layout="channels_last"),)),)))


def test_the_edit_puts_the_model_in_channels_last_where_it_is_made():
    from perfscope.patch import Source, rewrite
    text = "import torch\nmodel = Net(\n    8\n).train()\n"
    source = Source(text, "Net")
    assert rewrite(source, probe("conv_not_channels_last").edit(source)) == text.replace(").train", ").to(memory_format=torch.channels_last).train")
    assert probe("conv_not_channels_last").edit(Source("from torch import nn\nmodel = Net(8)\n", "Net")) == []


@pytest.mark.parametrize("conversions, rest, fires", [(5_000, 95_000, True), (4_900, 95_100, False)])
def test_layout_conversions_from_five_percent_outside_communication_on(conversions, rest, fires):
    trace = layers.trace_of(("cudnn::ops::nchwToNhwcKernel<float>", 3, conversions), ("ampere_gemm", 5, rest), ("ncclDevKernel_AllReduce", 2, 10**6))
    assert bool(fired("layout_conversions", Evidence(Config("cuda"), trace=trace))) == fires


def test_layout_conversions_leave_a_contiguous_model_to_its_own_probe():
    trace = probe("layout_conversions").examples()[0].trace
    assert not fired("layout_conversions", Evidence(replace(H100, memory_format="contiguous"), modules=(conv(),), trace=trace))
    assert "633 kernels" in fired("conv_not_channels_last", Evidence(replace(H100, memory_format="contiguous"), modules=(conv(),), trace=trace))[0].text
    assert fired("layout_conversions", Evidence(H100, modules=(conv(),), trace=trace))[0].extra == {"hint": True}


class Net(nn.Module):
    """A convolution, something, a convolution, a mean."""

    def __init__(self, between, channels=8):
        super().__init__()
        self.a, self.between, self.b = nn.Conv2d(8, 8, 3, padding=1), between, nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x):
        return self.b(self.between(self.a(x))).mean((2, 3))


class Cat(nn.Module):
    """Channels and positions, which were made contiguous."""

    def forward(self, x):
        return torch.cat([x, torch.zeros_like(x, memory_format=torch.contiguous_format)], 1)


class LastNorm(nn.Module):
    """ConvNeXt's way: another view, a layer norm, the first view again."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def workload(model, memory_format="channels_last"):
    return Workload(model, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.1), image_batch((8, 8, 8), 8), memory_format=memory_format)


@pytest.mark.parametrize("between, channels, breaker", [
    (nn.InstanceNorm2d(8), 8, "between"), (nn.Sequential(nn.ReLU(), nn.Softmax(1)), 8, "between.1"), (Cat(), 16, "between"),
    (LastNorm(), 8, None), (nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Upsample(scale_factor=2)), 8, None)])
def test_the_first_module_that_breaks_the_layout(between, channels, breaker):
    found = fired("layout_breaker", contract.evidence_of(workload(Net(between, channels))))
    assert [f.evidence["first"] for f in found] == ([breaker] if breaker else [])
    if found:
        assert [p.where for p in found[0].places][-1] == "b" and found[0].extra == {}
        assert not fired("mixed_layouts", contract.evidence_of(workload(Net(between, channels))))


def test_a_break_without_a_convolution_behind_it_is_none():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 8))
    assert not fired("layout_breaker", contract.evidence_of(workload(model)))


def test_a_break_in_the_same_forward_as_the_convolution_is_a_hint_with_its_line():
    class Own(Net):
        def forward(self, x):
            return self.b(self.a(x).contiguous()).mean((2, 3))
    (found,) = fired("layout_breaker", contract.evidence_of(workload(Own(nn.Identity()))))
    assert found.extra == {"hint": True} and "test_probes_layout.py:" in found.evidence["line"] and found.evidence["operator"] == "clone"


def test_keeping_the_layout_changes_no_number_and_leaves_hooks_only_where_it_breaks():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    before = model(x)
    probe("layout_breaker").keep_layout(model)
    for _ in range(2):
        assert torch.equal(model(x), before)
    assert [len(m._forward_hooks) for m in model] == [0, 1, 0, 0]


def test_contiguous_keeps_the_layout_only_within_and_only_where_nothing_was_asked():
    last, usual = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last), torch.Tensor.contiguous
    with probe("layout_breaker").contiguous_keeps():
        assert last.contiguous() is last and last.contiguous(memory_format=torch.contiguous_format).is_contiguous()
        assert last[:, ::2].contiguous().is_contiguous() and last.transpose(0, 1).contiguous().is_contiguous() and last[0].contiguous().is_contiguous()
    assert torch.Tensor.contiguous is usual and "contiguous" not in vars(torch.Tensor) and last.contiguous().is_contiguous()


@pytest.mark.parametrize("answer, fires", [
    (timed(0.05, 0.4, 0.35, 0.45), True),           # half of the step, 60 % of it saved
    (timed(0.05, 0.92, 0.85, 0.97), False),         # the interval does not clear 10 % of the layers' time
    (timed(0.001, 0.4, 0.35, 0.45), False),         # 1 % of the step: 0.6 % to be saved
    (timed(0.05, 1.5, 1.4, 1.6), False),
    (lambda a, b: None, False),
])
def test_channels_last_is_harmful_only_if_the_layers_alone_say_so(answer, fires):
    seen = contract.evidence_of(workload(Net(nn.GroupNorm(2, 8))))
    found = fired("channels_last_harmful", replace(seen, config=replace(seen.config, step_s=0.1), alone=answer))
    assert bool(found) == fires
    if found:
        assert found[0].saves.point == pytest.approx(0.3) and found[0].share == pytest.approx(0.5) and [p.where for p in found[0].places] == ["between"]


def test_only_suspects_are_timed():
    def never(a, b):
        raise AssertionError("nothing to time")
    seen = contract.evidence_of(workload(Net(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Softmax(-1)))))
    assert not fired("channels_last_harmful", replace(seen, alone=never))
    why = probe("channels_last_harmful")._why
    assert why(conv(groups=4), Config()) and not why(conv(groups=16), Config()) and not why(conv(), H100)
    assert why(conv(), replace(H100, capability=(7, 5))) and why(conv(), replace(H100, switches={"cudnn.allow_tf32": False}))


def test_islands_change_no_number():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.Softmax(1), nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    before = model(x)
    probe("channels_last_harmful").islands(model)
    after = model(x)
    assert torch.allclose(after, before, atol=1e-6) and after.is_contiguous(memory_format=torch.channels_last)


def test_mixed_layouts_both_ways_and_neither_where_memory_is_the_same():
    last, plain = "channels_last", "contiguous"
    c = replace(H100, memory_format=plain)
    (images,) = fired("mixed_layouts", Evidence(c, modules=(conv(layouts=(plain, last, last)), conv("second", layouts=(last, last, last)))))
    assert "images contiguous" in images.text and images.evidence["converted_bytes"] == 8 * 16 * 64 * 4
    (weights,) = fired("mixed_layouts", Evidence(c, modules=(conv(layouts=(last, plain, last)), conv("second", layouts=(last, plain, last)))))
    assert [p.where for p in weights.places] == ["conv", "second"]
    for layouts in ((plain, plain, plain), (last, last, last)):
        assert not fired("mixed_layouts", Evidence(c, modules=(conv(layouts=layouts),)))
    assert not fired("mixed_layouts", Evidence(c, modules=(conv(weight=(32, 16, 1, 1), layouts=(plain, last, plain)),)))
    broken = (conv("first", layouts=(last, last, last)), conv("second", layouts=(plain, last, last)))
    assert not fired("mixed_layouts", Evidence(c, modules=broken)), "that is layout_breaker's"


# ---------------------------------------------------------------- bias before a norm

class Twice(nn.Module):
    """The convolution's output is read by the norm and by the sum."""

    def __init__(self, twice):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), twice

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y if self.twice else self.norm(y)


class Untraceable(nn.Module):
    """Its forward looks at a value."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))

    def forward(self, x):
        return self.body(x) if x.sum() > -1e9 else x


def test_a_bias_counts_only_if_the_norm_alone_reads_it():
    pairs = probe("conv_bias_before_norm").pairs
    assert len(pairs(Twice(False))) == 1 and pairs(Twice(True)) == [] and pairs(Twice(False).eval()) == []
    model = Untraceable()
    assert pairs(model) == [(model.body[0], model.body[1])]
    shared = nn.BatchNorm2d(8)
    assert pairs(nn.Sequential(nn.Conv2d(8, 8, 1), shared, nn.Conv2d(8, 8, 1), shared)) == []
    assert len(pairs(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))) == 1


def test_without_the_bias_training_and_evaluation_give_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).double()
    x = torch.randn(4, 8, 8, 8, dtype=torch.float64)
    for _ in range(3):
        model(x)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    trained, evaluated = model(x), model.eval()(x)
    model.load_state_dict(before)
    probe("conv_bias_before_norm").without_bias(model.train())
    assert model[0].bias is None
    assert torch.allclose(model(x), trained, atol=1e-12) and torch.allclose(model.eval()(x), evaluated, atol=1e-12)
    with pytest.raises(ValueError):
        probe("conv_bias_before_norm").without_bias(model)


# ---------------------------------------------------------------- sizes

def product(m, k, n, dtype="bfloat16", module="head"):
    return OpCall("mm", (Tensor((m, k), dtype), Tensor((k, n), dtype)), (Tensor((m, n), dtype),), module=module)


@pytest.mark.parametrize("op, config, fires", [
    (product(100, 64, 1001), H100, True), (product(100, 64, 1000), H100, False), (product(101, 64, 1000), H100, False), (product(100, 60, 1000), H100, True),
    (product(100, 64, 1004, "float32"), replace(H100, switches={"matmul.allow_tf32": True}), False),
    (product(100, 64, 1001, "float32"), replace(H100, switches={"matmul.allow_tf32": True}), True),
    (product(100, 64, 1001, "float32"), H100, False),
    (product(100, 64, 1001, "float32"), replace(H100, capability=(7, 5), switches={"matmul.allow_tf32": True}), False),
    (product(100, 64, 1001, "float64"), H100, False)])
def test_sizes_by_precision(op, config, fires):
    assert bool(fired("sizes_not_multiple_of_8", Evidence(config, ops=(op,)))) == fires


def test_small_and_grouped_layers_are_left_alone():
    for n, fires in ((10, True), (11, False)):
        odd, even = product(8, 8, 12), product(8, 8, 12 * 9 * n + 8 - 12 * 9 * n % 8, module="up")
        assert bool(fired("sizes_not_multiple_of_8", Evidence(H100, ops=(odd, even)))) == (odd.flops >= 0.01 * (odd.flops + even.flops)) == fires
    x, w = Tensor((8, 12, 8, 8), "float16"), Tensor((12, 1, 3, 3), "float16")
    assert not fired("sizes_not_multiple_of_8", Evidence(H100, ops=(OpCall("convolution", (x, w), (x,), {"groups": 12}),)))
    assert fired("sizes_not_multiple_of_8", Evidence(H100, ops=(OpCall("convolution", (x, Tensor((12, 12, 3, 3), "float16")), (x,), {"groups": 1}),)))


def test_padding_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 16, 77, bias=False)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    parameters = list(model.parameters())
    before = [model(x), *torch.autograd.grad(model(x).square().sum(), parameters)]
    probe("sizes_not_multiple_of_8").padded(model)
    after = [model(x), *torch.autograd.grad(model(x).square().sum(), parameters)]
    assert all(torch.allclose(a, b, atol=1e-12) and a.shape == b.shape for a, b in zip(before, after))


# ---------------------------------------------------------------- the norms' cures

def test_norms_in_float32_keep_the_dtype_and_come_closer_to_the_truth():
    torch.manual_seed(0)
    x = (torch.randn(16, 8, 8, 8) * 3 + 1).to(torch.bfloat16)
    truth = nn.BatchNorm2d(8).double()(x.double())
    plain, wide, weights = (nn.Sequential(nn.BatchNorm2d(8)).to(torch.bfloat16) for _ in range(3))
    probe("bfloat16_batch_norm").float32_norms(wide)
    probe("half_batch_norm_off_cudnn").float32_weights(weights)
    for model in (wide, weights):
        assert model[0].weight.dtype == model[0].running_mean.dtype == torch.float32 and model(x).dtype == torch.bfloat16
        assert (model(x).double() - truth).norm() <= (plain(x).double() - truth).norm() * 1.01


def test_weights_that_are_not_trained_and_a_third_dimension_change_no_number():
    p = probe("batch_norm_off_cudnn")
    x, flat = torch.randn(8, 4, 3, 3), torch.randn(8, 4)
    for make, given in ((lambda: nn.BatchNorm2d(4, affine=False), x), (lambda: nn.BatchNorm1d(4, affine=False), flat)):
        model = nn.Sequential(make())
        before = model(given)
        p.with_weights(model)
        p.three_dimensions(model)
        assert torch.allclose(model(given), before, atol=1e-6) and model(given).shape == given.shape
        assert not any(t.requires_grad for t in model.parameters())
    seen = torch.backends.cudnn.enabled
    with p.switched(not seen)():
        assert torch.backends.cudnn.enabled is not seen
    assert torch.backends.cudnn.enabled is seen


# ---------------------------------------------------------------- layers alone

def test_layers_alone_leave_the_model_and_the_generator_as_they_were():
    seen = contract.evidence_of(contract.subject("conv"))
    call = next(m for m in seen.modules if m.kind == "BatchNorm2d")
    before = {n: t.clone() for n, t in call.module.state_dict().items()}
    generator, gradient = torch.get_rng_state(), call.module.weight.grad.clone()
    interval = layers.saved(replace(seen, config=replace(seen.config, step_s=0.1), alone=timed(0.05, 0.5, 0.4, 0.6)), [call], lambda m, x: (m, x))
    assert (interval.point, interval.low, interval.high) == (pytest.approx(0.25), pytest.approx(0.2), pytest.approx(0.3)) and interval.extra["share"] == 0.5
    assert all(torch.equal(t, before[n]) for n, t in call.module.state_dict().items()) and torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(call.module.weight.grad, gradient)


def test_layers_that_cannot_be_run_alone_give_no_figure():
    seen = contract.evidence_of(contract.subject("conv"))
    call = next(m for m in seen.modules if m.kind == "Conv2d")
    assert layers.saved(seen, [], lambda m, x: (m, x)) is None
    assert layers.saved(seen, [replace(call, module=None)], lambda m, x: (m, x)) is None
    assert layers.saved(seen, [call], lambda m, x: (m, x[:, :1])) is None, "a change that does not fit"
    assert layers.saved(replace(seen, config=replace(seen.config, memory={"free": 1000})), [call], lambda m, x: (m, x)) is None


# ---------------------------------------------------------------- real traces

def from_elsewhere(name):
    return Evidence(Config("cuda"), trace=analyze_files(TRACES / f"{name}.json.gz", cache=False).ranks[0])


@real
def test_layout_conversions_of_the_a100_trace():
    (found,) = fired("layout_conversions", from_elsewhere("a100-resnet50-ddp-nchw"))
    assert (found.evidence["kernels"], round(found.evidence["ms"], 2), round(found.share, 3)) == (633, 15.12, 0.093)
    assert "633 kernels, 15.12 ms, 9.3 % of kernel time" in found.text and {p.where for p in found.places} == {"nchwToNhwc", "nhwcToNchw"}


@real
@pytest.mark.parametrize("name", ["v100-resnet50-fp32", "v100-resnet50-loader-in-process", "v100-resnet50-loader-4-workers"])
def test_silent_on_the_v100_traces(name):
    seen = from_elsewhere(name)
    assert 0.0005 < seen.trace.layout.share < 0.002
    assert not any(fired(p, seen) for p in ("layout_conversions", *NORM_PROBES))


@real
def test_native_norms_and_transposes_of_the_mi300x_trace():
    seen = from_elsewhere("mi300x-resnet-ddp-checkpointing")
    (native,) = fired("bfloat16_batch_norm", seen)
    assert native.evidence["kernels"] == 392 and round(native.evidence["share_outside_communication"], 3) == 0.308
    assert "392 kernels" in native.text and "30.8 %" in native.text and any("[10, 64, 56, 56]" in p.saw for p in native.places)
    (found,) = fired("layout_conversions", seen)
    assert round(found.evidence["families"]["batched_transpose"]["share_outside_communication"], 3) == 0.207
    assert not any(fired(p, seen) for p in NORM_PROBES if p != "bfloat16_batch_norm")


def test_functional_norms_are_not_guessed():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3)

        def forward(self, x):
            return F.batch_norm(self.conv(x), None, None, training=True).mean((2, 3))
    assert norms.batch_norms(contract.evidence_of(workload(Functional()))) == []
