"""Taking a step apart on a GPU: precision, layout, CUDA graphs, compiled code, and the same convolution kernels in every variant.

Needs torch, pytest and a CUDA device, nothing else; skipped without one.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perfscope import registry
from perfscope.workload import Workload, census, sane, step
from perfscope.workload import parts as taking

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(False, reason="needs a CUDA device")]

DTYPES = ("float32", "half", "bfloat16", "amp-half", "amp-bfloat16")
REPLAYS = 5


@pytest.fixture(autouse=True)
def pristine():
    """After every test the operators are PyTorch's own again, on the GPU and under its autocast."""
    yield
    x = torch.linspace(-2, 3, 64, device="cpu").view(2, 2, 4, 4).requires_grad_()
    for name, y in {"ReluBackward0": torch.relu(x), "GeluBackward0": F.gelu(x), "SoftmaxBackward0": F.softmax(x, -1),
                    "NativeLayerNormBackward0": F.layer_norm(x, (4,)), "NativeGroupNormBackward0": F.group_norm(x, 2),
                    "MaxPool2DWithIndicesBackward0": F.max_pool2d(x, 2)}.items():
        assert type(y.grad_fn).__name__ == name
    assert "BatchNorm" in type(F.batch_norm(x, None, None, training=True).grad_fn).__name__
    assert F.scaled_dot_product_attention(x, x, x).grad_fn is not None and not torch.equal(F.scaled_dot_product_attention(x, x, x), x)
    with torch.autocast("cpu", torch.bfloat16):
        pass


def sgd(parameters):
    """For low precision, in which Adam's second moment underflows and the weights go to infinity by themselves."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def prepared_model(name, n=16, **settings):
    """A built-in model on the GPU: (prepared, batches, parts without the data part)."""
    workload = registry.load("models", name).workload()
    optimizer = workload.optimizer if settings.get("dtype", "float32") == "float32" else sgd
    workload = Workload(workload.model, workload.loss, optimizer, workload.batch, name=name)
    prepared = step.prepare(workload, device="cpu", keep_original=False, **settings)
    batches = step.load_batches(prepared, n)
    return prepared, batches, step.present_parts(prepared, batches)


def ladder(prepared, batches, parts):
    """Every variant of the ladder, built and sane, from the base to the full step."""
    full = step.build(prepared, batches, parts, parts)
    had = step.with_gradient(prepared)
    for i in range(len(parts) + 1):
        variant = full if i == len(parts) else step.build(prepared, batches, parts[:i], parts, had)
        yield variant, sane.make_sane(prepared, batches, variant, variant is full)


def calls(variant):
    with variant, census.Count() as count:
        variant.step()
    None
    return count.calls


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_resnet9_in_every_precision_and_layout(dtype, layout):
    prepared, batches, parts = prepared_model("resnet9", dtype=dtype, memory_format=layout)
    assert parts == ("norm", "activation", "optimizer")
    matmuls = {}
    before = {n: p.detach().clone() for n, p in prepared.model.named_parameters()}
    for variant, guard in ladder(prepared, batches, parts):
        removed = [p for p in parts if p in taking.OPERATOR_PARTS and p not in variant.parts]
        counted = calls(variant)
        assert census.residue(counted, removed) == {}
        matmuls[variant.name] = sum(n for name, n in counted.items() if census.MATMUL.match(name))
        assert guard.finite and guard.conv_layouts == (layout,)
        assert guard.conv_dtypes == (str(step.DTYPES[dtype] or torch.float32).removeprefix("torch."),)
        if variant.name != step.variant_name(parts):
            assert 0.1 <= guard.activation_std_low <= guard.activation_std_high <= 10
    assert len(set(matmuls.values())) == 1
    for name, p in prepared.model.named_parameters():
        changed = before[name] != 0
        assert torch.equal(p[changed], before[name][changed]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_vit_in_every_precision(dtype):
    prepared, batches, parts = prepared_model("vit", dtype=dtype)
    assert parts == ("norm", "activation", "attention", "optimizer")
    names = set(dict(prepared.model.named_parameters()))
    for variant, guard in ladder(prepared, batches, parts):
        removed = [p for p in parts if p in taking.OPERATOR_PARTS and p not in variant.parts]
        assert census.residue(calls(variant), removed) == {}
        assert guard.finite and step.with_gradient(prepared) == names


def test_a_removed_layer_norm_leaves_no_cast_under_autocast():
    """CUDA's autocast runs layer_norm in float32 and hands float32 on: both casts have to go with it."""
    def casts(middle, keep):
        model = nn.Sequential(nn.Linear(64, 64), middle, nn.Linear(64, 64))
        workload = Workload(model, lambda y, t: y.float().square().mean(), sgd, (torch.randn(8, 64), torch.zeros(8)))
        prepared = step.prepare(workload, device="cpu", dtype="amp-bfloat16")
        batches = step.load_batches(prepared, 8)
        parts = step.present_parts(prepared, batches)
        step.build(prepared, batches, parts, parts)
        with step.build(prepared, batches, [p for p in parts if p in keep], parts), census.Count() as count, torch.no_grad(), \
                step.autocast(prepared):
            step.call_model(prepared.model, batches.inputs)
        return count.calls.get("_to_copy", 0)
    with_norm, without = casts(nn.LayerNorm(64), ("norm",)), casts(nn.LayerNorm(64), ())
    assert without == casts(nn.Identity(), ()) < with_norm


@pytest.mark.parametrize("name, dtype, layout", [
    ("resnet9", "float32", "contiguous"), ("resnet9", "half", "channels_last"), ("resnet9", "amp-bfloat16", "channels_last"),
    ("vit", "float32", "contiguous"), ("vit", "bfloat16", "contiguous"),
])
def test_every_variant_of_the_ladder_in_a_cuda_graph(name, dtype, layout):
    prepared, batches, parts = prepared_model(name, dtype=dtype, memory_format=layout, cuda_graph=False)
    graphs = []
    for variant, guard in ladder(prepared, batches, parts):
        with variant:
            graphs.append((variant, variant.step))
        assert guard.finite
    for _ in range(2):                                  # in turn, as the rounds do: each is still its own
        for variant, replay in graphs:
            with variant:
                for _ in range(REPLAYS):
                    replay()
                None
                loss = step.loss_value(variant.step())
            assert math.isfinite(loss) and sane.all_finite(prepared.model), variant.name


def test_a_replay_does_what_the_step_does():
    """The gradients that a replayed base leaves are those of the eager base, not of the full step."""
    prepared, batches, parts = prepared_model("resnet9", cuda_graph=False)
    found = {}
    for variant, _ in ladder(prepared, batches, parts):
        with variant:
            replay = variant.step
            static = {n: p.grad for n, p in prepared.model.named_parameters()}
            for gradient in static.values():
                gradient.fill_(math.nan) if gradient is not None else None
            for parameter, gradient in variant.fill:
                gradient.fill_(1e-3)
            replay()
            None
            replayed = {n: g.clone() for n, g in static.items()}
            variant.step()
            found[variant.name] = replayed
            for n, p in prepared.model.named_parameters():
                assert torch.allclose(replayed[n], p.grad, rtol=1e-2, atol=1e-4 * float(p.grad.abs().max()) + 1e-8), (variant.name, n)
    base, full = found["base"], found[step.variant_name(parts)]
    assert not torch.allclose(base["prep.0.weight"], full["prep.0.weight"], rtol=0.1)


class Small(nn.Module):
    """Norm, GELU and attention between matmuls."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        return self.out(F.gelu(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_variants_do_what_the_eager_ones_do(mode):
    torch.manual_seed(0)
    model, x = Small(), torch.randn(4, 16, 64)
    found = {}
    for compiled in ("off", mode):
        workload = Workload(model, lambda y, t: y.square().mean(), sgd, (x, torch.zeros(4)))
        prepared = step.prepare(workload, device="cpu", compile=compiled)
        batches = step.load_batches(prepared, 4)
        parts = step.present_parts(prepared, batches)
        assert parts == ("norm", "activation", "attention", "optimizer")
        variants = [step.make_variant(prepared, batches, parts[:n], parts) for n in (3, 1, 0)]
        for _ in range(3):                              # reduce-overhead warms up, records, and replays
            for variant in variants:
                with variant:
                    loss = variant.step().item()
                    gradients = {n: p.grad.clone() for n, p in prepared.model.named_parameters() if p.grad is not None}
                found[compiled, variant.name] = loss, gradients
    names = [name for compiled, name in found if compiled == "off"]
    assert len({found["off", n][0] for n in names}) == 3
    for name in names:
        (want, gradients), (got, compiled_gradients) = found["off", name], found[mode, name]
        assert got == pytest.approx(want, rel=1e-3) and gradients.keys() == compiled_gradients.keys()
        for n, g in gradients.items():
            assert torch.allclose(g, compiled_gradients[n], rtol=1e-2, atol=1e-3 * float(g.abs().max())), (name, n)


@pytest.mark.parametrize("dtype, layout", [("float32", "contiguous"), ("half", "channels_last"), ("amp-half", "contiguous")])
def test_convolution_kernels_are_the_same_in_the_base_and_in_the_full_step(dtype, layout):
    prepared, batches, parts = prepared_model("resnet9", n=4, dtype=dtype, memory_format=layout)
    inner = [p for p in parts if p in taking.OPERATOR_PARTS]
    kernels = census._kernels(prepared, batches, inner, parts)
    base, full = kernels["base"], kernels[step.variant_name(inner)]
    assert base and base == full


def test_overrides_come_back_after_an_error_in_a_capture():
    class Synchronises(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x):
            y = self.norm(self.a(x))
            if torch.cuda.is_current_stream_capturing():
                y.sum().item()                          # not allowed while capturing
            return y
    workload = Workload(Synchronises(), lambda y, t: y.square().mean(), sgd, (torch.randn(8, 8), torch.zeros(8)))
    prepared = step.prepare(workload, device="cpu")
    batches = step.load_batches(prepared, 8)
    parts = step.present_parts(prepared, batches)
    variant = step.build(prepared, batches, (), parts)
    with pytest.raises(RuntimeError), variant:
        variant.step
    None
    with variant:
        assert bool(torch.isfinite(variant.step()))
