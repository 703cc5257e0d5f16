"""Taking operators and modules away: nothing of a removed part is left, everything else is untouched, all comes back."""

from collections import Counter
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from perfscope.errors import UsageError
from perfscope.workload import census, step
from perfscope.workload import parts as taking
from tests import small
from tests.small import ConvNet, Transformer, assert_pristine, count, images, taken, tokens

#: name -> (model, batch, what each part consists of: its ATen operators in one forward and backward, and how many)
BATCH_NORM = {"native_batch_norm": 2, "native_batch_norm_backward": 2, "add_": 2, "empty": 2}      # add_ counts the batches
LAYER_NORM = {"native_layer_norm": 2, "native_layer_norm_backward": 2}
SDPA = {"_scaled_dot_product_flash_attention_for_cpu": 1, "_scaled_dot_product_flash_attention_for_cpu_backward": 1}
DROPOUT = {"empty_like": 1, "bernoulli_": 1, "div_": 1, "mul": 2}
MODELS = {
    "batch norm, relu": (lambda: ConvNet(dropout=0.5), images,
                         {"norm": BATCH_NORM, "activation": {"relu": 2, "threshold_backward": 2}, "dropout": DROPOUT}),
    "batch norm, relu in place": (lambda: ConvNet(inplace=True), images,
                                  {"norm": BATCH_NORM, "activation": {"relu_": 2, "threshold_backward": 2}}),
    "group norm, hardswish": (lambda: ConvNet(norm=lambda c: nn.GroupNorm(2, c), act=nn.Hardswish), images,
                              {"norm": {"native_group_norm": 2, "native_group_norm_backward": 2},
                               "activation": {"hardswish": 2, "hardswish_backward": 2}}),
    "layer norm, gelu": (lambda: Transformer(dropout=0.5), tokens,
                         {"norm": LAYER_NORM, "activation": {"gelu": 1, "gelu_backward": 1}, "attention": SDPA, "dropout": DROPOUT}),
    "grouped queries": (lambda: Transformer(kv_heads=2, act=nn.Tanh), tokens,
                        {"norm": LAYER_NORM, "activation": {"tanh": 1, "tanh_backward": 1}, "attention": None}),
    "rms norm, silu": (lambda: Transformer(norm=nn.RMSNorm, act=nn.SiLU), tokens,
                       {"norm": None, "activation": {"silu": 1, "silu_backward": 1}, "attention": SDPA}),
    "by hand": (lambda: Transformer(norm=small.RMSNorm, act=small.NewGELU), tokens,
                {"norm": None, "activation": {"tanh": 1, "tanh_backward": 1, "pow": 2, "add": 4, "mul": 11}, "attention": SDPA}),
}
BOOKKEEPING = {"detach", "view", "new_empty", "slice", "expand"}     # views: no work
ARITHMETIC = {"pow", "mean", "add", "add_", "rsqrt", "mul", "expand", "div", "sum", "detach", "view", "clone", "transpose",
              "_unsafe_view", "unsqueeze", "_reshape_alias", "repeat_interleave"}    # what decomposed norms and head repetition are


@pytest.fixture(autouse=True)
def pristine():
    yield
    assert_pristine()


def multiplications(calls):
    return {name: n for name, n in calls.items() if census.MATMUL.match(name)}


@pytest.mark.parametrize("name", MODELS)
def test_every_set_of_parts_alone_and_together(name):
    model, batch, known = MODELS[name]
    prepared, batches, parts = taken(model(), batch())
    assert set(parts) == {*known, "optimizer"}
    inner = [p for p in parts if p != "optimizer"]
    full = count(step.build(prepared, batches, inner, parts))
    had = step.with_gradient(prepared)
    assert had == set(dict(prepared.model.named_parameters()))
    one = {}
    for n in range(1, len(inner) + 1):
        for removed in combinations(inner, n):
            variant = step.build(prepared, batches, [p for p in inner if p not in removed], parts)
            calls = count(variant)
            assert census.residue(calls, removed) == {}
            assert multiplications(calls) == multiplications(full) or "attention" in removed and known["attention"] is None
            gone, new = full - calls, calls - full
            assert set(new) <= BOOKKEEPING, new
            if n == 1:
                one[removed[0]], expected = gone, known[removed[0]]
                if expected is None:
                    assert set(gone) - set(census.residue(gone, removed)) <= ARITHMETIC | {"empty_like", "zeros"}, gone
                else:
                    assert {k: v for k, v in gone.items() if k not in BOOKKEEPING | {"empty"}} == \
                        {k: v for k, v in expected.items() if k != "empty"}
            else:                   # together they take away what each takes away alone
                expected = sum((one[p] for p in removed), Counter())
                assert {k: v for k, v in gone.items() if k not in ARITHMETIC | BOOKKEEPING} == \
                    {k: v for k, v in expected.items() if k not in ARITHMETIC | BOOKKEEPING}
            lost = had - step.with_gradient(prepared)
            assert lost == ({p for p in had if p.startswith("norm")} if "norm" in removed else set())
            with variant:
                variant.step()
            assert {p for p in had if "weight" in p and not p.startswith("norm")} <= small.gradients(prepared)


@pytest.mark.parametrize("shapes", [
    ((2, 4, 5, 8), (2, 4, 9, 8), (2, 4, 9, 8)), ((2, 4, 9, 8), (2, 4, 5, 8), (2, 4, 5, 8)), ((2, 4, 5, 8), (2, 4, 5, 8), (2, 4, 5, 6)),
    ((2, 4, 5, 8), (2, 4, 9, 8), (2, 4, 9, 12)), ((2, 8, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)), ((8, 5, 8), (8, 7, 8), (8, 7, 4)),
], ids=["longer keys", "shorter keys", "narrow values", "wide values", "grouped", "3-d"])
def test_attention_of_any_shape_gives_shape_and_gradients(shapes):
    q, k, v = (torch.randn(s, requires_grad=True) for s in shapes)
    settings = {"enable_gqa": True} if q.shape[-3] != k.shape[-3] else {}
    real = F.scaled_dot_product_attention(q, k, v, **settings)
    with taking.Overrides(()):
        got = F.scaled_dot_product_attention(q, k, v, **settings)
        got.backward(torch.randn_like(got))
    assert got.shape == real.shape and got.dtype == real.dtype
    for x in (q, k, v):
        assert x.grad.shape == x.shape and bool(x.grad.any())


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 16))
        self.q, self.k, self.v, self.out = nn.Linear(16, 16), nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x):
        q = self.q(self.queries).expand(len(x), -1, -1)
        return self.out(F.scaled_dot_product_attention(q, self.k(x), self.v(x)))


def test_projections_of_cross_attention_keep_their_matmuls_and_gradients():
    prepared, batches, parts = taken(CrossAttention(), torch.randn(2, 7, 12))
    full = count(step.build(prepared, batches, parts, parts))
    had = step.with_gradient(prepared)
    base = step.build(prepared, batches, (), parts)
    own = {"bmm"}       # with values of another width PyTorch's own attention multiplies with bmm, which goes with it
    assert {k: n for k, n in multiplications(full).items() if k not in own} == multiplications(count(base))
    assert step.with_gradient(prepared) == had <= small.gradients(prepared)


def test_attention_written_with_softmax():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return torch.softmax(q @ k.transpose(1, 2), -1, dtype=torch.float32).to(q.dtype) @ v
    prepared, batches, parts = taken(Plain(), torch.randn(2, 5, 8))
    assert parts == ("attention", "optimizer")
    calls = count(step.build(prepared, batches, (), parts))
    assert census.residue(calls, ["attention"]) == {} and calls["bmm"] == 2 + 4


# ---------------------------------------------------------------- all comes back

@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_as_before_after_leaving(error):
    prepared, batches, parts = taken(ConvNet(), images())
    model, x = prepared.model, batches.inputs
    counters = [m.num_batches_tracked for m in (model.norm1, model.norm2)]
    torch.manual_seed(0)
    before, kept = model.eval()(x), small.state(model)
    variant = step.build(prepared, batches, (), parts)
    with variant:
        assert model.norm1.num_batches_tracked is None
        assert not torch.equal(model(x), before)
    with pytest.raises(error, match="middle"), variant:
        raise error("in the middle")
    assert torch.equal(model(x), before) and model(x).grad_fn.name() == before.grad_fn.name()
    assert all(a is b for a, b in zip(counters, (model.norm1.num_batches_tracked, model.norm2.num_batches_tracked)))
    assert small.same(kept, small.state(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_the_forward_pass(error):
    class Fails(ConvNet):
        fail = False

        def forward(self, x):
            if self.fail:
                raise error("the user's")
            return super().forward(x)
    prepared, batches, parts = taken(Fails(norm=small.BatchNormAct, act=nn.Identity), images())
    variant = step.build(prepared, batches, (), parts)
    prepared.model.fail = True
    with pytest.raises(error), variant:
        variant.step()
    assert "forward" not in prepared.model.norm1.__dict__
    assert prepared.model.norm1.num_batches_tracked is not None


@pytest.mark.parametrize("after", [0, 1, 25])
def test_ctrl_c_while_the_operators_are_being_overridden(monkeypatch, after):
    calls, real = [], torch.library.Library.impl

    def impl(self, *args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)
    monkeypatch.setattr(torch.library.Library, "impl", impl)
    overrides = taking.Overrides(())
    with pytest.raises(KeyboardInterrupt), overrides:
        pass
    assert len(calls) == after + 1
    assert_pristine()
    monkeypatch.undo()
    with overrides:                                 # and it can be entered again
        assert torch.relu(torch.tensor(-1.0, requires_grad=True)) == -1


def test_entering_twice_is_refused_and_leaves_no_trace():
    overrides = taking.Overrides(())
    with overrides:
        with pytest.raises(RuntimeError, match="already"):
            overrides.__enter__()
        assert torch.relu(torch.tensor(-1.0)) == -1
    assert_pristine()
    prepared, batches, parts = taken(ConvNet(), images())
    variant = step.build(prepared, batches, (), parts)
    with variant:
        with pytest.raises(RuntimeError, match="entered already"):
            variant.enter()
    assert prepared.model.norm1.num_batches_tracked is not None
    variant.leave()                                 # once too often: nothing happens


def test_one_variant_inside_another():
    prepared, batches, parts = taken(ConvNet(), images())
    outer, inner = (step.build(prepared, batches, keep, parts) for keep in (("norm",), ()))
    x = torch.linspace(-1, 1, 24).view(1, 2, 3, 4)
    with outer:
        with inner:
            assert F.layer_norm(x, (4,)) is x
        assert F.layer_norm(x, (4,)) is not x and torch.relu(x) is x


def test_modules_that_patched_their_own_forward_get_it_back():
    prepared, batches, parts = taken(Transformer(norm=small.RMSNorm), tokens())
    mine = lambda x: 2 * x  # noqa: E731
    prepared.model.norm1.forward = mine
    with step.build(prepared, batches, (), parts):
        assert prepared.model.norm1.forward is taking.hand_through
    assert prepared.model.norm1.forward is mine and "forward" not in prepared.model.norm2.__dict__


# ---------------------------------------------------------------- low precision and layouts

def dtypes(variant, prepared, batches):
    """The dtype conversions of a forward pass."""
    with variant, census.Count() as counted, torch.no_grad(), step.autocast(prepared):
        step.call_model(prepared.model, batches.inputs)
    return counted.calls.get("_to_copy", 0)


@pytest.mark.parametrize("middle, removed_casts", [(nn.LayerNorm(8), False), (nn.PReLU(), True)], ids=["layer_norm", "prelu"])
def test_what_is_removed_leaves_no_cast_of_its_own_under_autocast(middle, removed_casts):
    """On a CPU autocast casts for prelu, not for norms; tests/gpu has layer_norm, which CUDA's casts to float32 and back."""
    casts = {}
    for name, layer in (("there", middle), ("not there", nn.Identity())):
        prepared, batches, parts = taken(nn.Sequential(layer, nn.Linear(8, 8)), torch.randn(4, 8), dtype="amp-bfloat16")
        casts[name] = [dtypes(step.build(prepared, batches, keep, parts), prepared, batches) for keep in (parts, ())]
    assert casts["there"][1] == casts["not there"][0] == casts["not there"][1] > 0
    assert (casts["there"][0] > casts["there"][1]) == removed_casts


@pytest.mark.parametrize("dtype", ["bfloat16", "half", "amp-bfloat16", "amp-half"])
@pytest.mark.parametrize("model, batch", [(lambda: ConvNet(norm=lambda c: nn.GroupNorm(2, c)), images), (Transformer, tokens)],
                         ids=["conv", "transformer"])
def test_low_precision(dtype, model, batch):
    prepared, batches, parts = taken(model(), batch(), dtype=dtype)
    want = {"bfloat16": torch.bfloat16, "half": torch.float16}.get(dtype, torch.float32)
    assert {p.dtype for p in prepared.model.parameters()} == {want}
    step.build(prepared, batches, parts, parts)
    had = step.with_gradient(prepared)
    base = step.build(prepared, batches, (), parts, had)
    calls = count(base)
    assert census.residue(calls, [p for p in parts if p in taking.OPERATOR_PARTS]) == {}
    assert bool(torch.isfinite(base.loss))
    with base:
        base.step()
        with step.autocast(prepared):
            assert step.call_model(prepared.model, batches.inputs).dtype == step.DTYPES[dtype]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(2, c), lambda c: nn.InstanceNorm2d(c, affine=True)])
def test_channels_last_goes_through_a_removed_norm(norm):
    seen = []
    model = ConvNet(norm=norm)
    prepared, batches, parts = taken(model, images(), memory_format="channels_last")
    prepared.model.conv2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with step.build(prepared, batches, (), parts) as variant:
        variant.step()
    assert all(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in seen) and seen


# ---------------------------------------------------------------- written by hand

class Net(nn.Module):
    """A linear layer, something in the middle, a linear layer."""

    def __init__(self, middle, dim=8):
        super().__init__()
        self.a, self.middle, self.b = nn.Linear(dim, dim), middle, nn.Linear(dim, dim)

    def forward(self, x):
        y = self.middle(self.a(x))
        return self.b(y[0] if isinstance(y, tuple) else y)


class ConvMiddle(Net):
    def __init__(self, middle):
        super().__init__(middle)
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)


@pytest.mark.parametrize("model, x, part", [
    (lambda: Net(small.RMSNorm(8)), lambda: torch.randn(4, 8), "norm"),
    (lambda: Net(small.NewGELU()), lambda: torch.randn(4, 8), "activation"),
    (lambda: Net(small.DropPath()), lambda: torch.randn(4, 8), "dropout"),
    (lambda: ConvMiddle(small.GlobalResponseNorm(8)), images, "norm"),
], ids=["RMSNorm", "NewGELU", "DropPath", "GlobalResponseNorm"])
def test_handwritten_modules_are_found_and_removed(model, x, part):
    prepared, batches, parts = taken(model(), x())
    assert [(h.path, h.part) for h in prepared.handwritten] == [("middle", part)] and parts == (part, "optimizer")
    plain, plain_batches, plain_parts = taken(Net(nn.Identity()) if batches.inputs.dim() == 2 else ConvMiddle(nn.Identity()), x())
    base = count(step.build(prepared, batches, ("optimizer",), parts, ()))
    assert {k: v for k, v in base.items() if k not in ("mul_", "add_")} == \
        {k: v for k, v in count(step.build(plain, plain_batches, plain_parts, plain_parts)).items() if k not in ("mul_", "add_")}


class ChangesShape(nn.Module):
    """Named LayerNormPool, but it halves its input."""

    def forward(self, x):
        return x[:, ::2].repeat(1, 2)[:, :6]


class TupleNorm(nn.Module):
    def forward(self, x):
        return x * x.pow(2).mean().rsqrt(), None


class ScaledNormLinear(nn.Module):
    """Holds a matmul weight: it is more than a norm."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ self.weight


class ShapeNorm(ChangesShape):
    pass


class Narrow(Net):
    def __init__(self, middle):
        super().__init__(middle)
        self.b = nn.Linear(6, 8)


@pytest.mark.parametrize("model", [
    lambda: Narrow(ShapeNorm()), lambda: Net(TupleNorm()), lambda: Net(ScaledNormLinear()),
    lambda: Net(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), lambda: Net(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
    lambda: Net(small.DropPath(0.0)), lambda: Net(nn.LayerNorm(8)), lambda: Net(nn.GELU()), lambda: Net(nn.Identity()),
], ids=["shape", "tuple", "matmul", "weight_norm", "spectral_norm", "drops nothing", "LayerNorm", "GELU", "Identity"])
def test_what_is_no_handwritten_norm_is_left_alone(model):
    prepared, batches, parts = taken(model(), torch.randn(4, 8))
    assert prepared.handwritten == []
    full = count(step.build(prepared, batches, parts, parts))
    base = count(step.build(prepared, batches, ("optimizer",), parts))
    assert multiplications(base) == multiplications(full)
    if not set(parts) & {"norm", "activation"}:
        assert base == full


def test_the_activation_of_a_fused_norm_stays_when_only_the_norm_goes():
    prepared, batches, parts = taken(ConvNet(norm=small.BatchNormAct, act=nn.Identity), images())
    assert prepared.handwritten == [] and parts == ("norm", "activation", "optimizer")
    calls = count(step.build(prepared, batches, ("activation",), parts))
    assert calls["relu"] == 2 and census.residue(calls, ["norm"]) == {}
    calls = count(step.build(prepared, batches, ("norm",), parts))
    assert calls["native_batch_norm"] == 2 and census.residue(calls, ["activation"]) == {}


def test_candidates_by_name():
    class Swish(nn.Module):
        pass

    class Enormous(nn.Module):       # "norm" inside a word: named like one; what it does decides
        pass
    model = nn.ModuleDict({"s": Swish(), "e": Enormous(), "l": nn.Linear(2, 2), "b": nn.BatchNorm1d(2), "d": nn.Dropout(),
                           "p": nn.PReLU(), "w": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))})
    assert {k: part for k, (part, _) in taking.candidates(model).items()} == \
        {"s": "activation", "e": "norm", "b": "norm", "d": "dropout"}


def test_dropout_that_drops_nothing_is_no_part():
    assert "dropout" not in taken(ConvNet(dropout=0.0), images())[2]
    assert "dropout" in taken(ConvNet(dropout=0.1), images())[2]


def test_gated_linear_units_halve_their_input():
    prepared, batches, parts = taken(nn.Sequential(nn.Linear(8, 16), nn.GLU(), nn.Linear(8, 4)), torch.randn(4, 8))
    calls = count(step.build(prepared, batches, (), parts))
    assert parts == ("activation", "optimizer") and census.residue(calls, ["activation"]) == {} and calls["glu"] == 0


# ---------------------------------------------------------------- on request

def test_pooling_residual_and_embedding_stay_unless_asked_for():
    assert not set(taken(ConvNet(), images())[2]) & {"pooling", "residual", "embedding", "loss"}


POOLS = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
         nn.Sequential(nn.MaxPool2d(2), nn.ReLU(inplace=True))]


@pytest.mark.parametrize("dtype", ["float32", "amp-bfloat16"])
@pytest.mark.parametrize("pool", POOLS, ids=lambda p: type(p).__name__)
def test_pooling_on_request(pool, dtype):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), pool, nn.Conv2d(8, 4, 1))
    prepared, batches, parts = taken(model, images(), wanted=("pooling",), dtype=dtype)
    assert parts == ("pooling",)
    full = count(step.build(prepared, batches, parts, parts))
    base = step.build(prepared, batches, (), parts)
    calls = count(base)
    assert census.residue(full, parts) and census.residue(calls, parts) == {}
    assert multiplications(calls) == multiplications(full) and len(small.gradients(prepared)) == 4


@pytest.mark.parametrize("dtype", ["float32", "amp-bfloat16"])
def test_embedding_on_request(dtype):
    prepared, batches, parts = taken(Transformer(), tokens(), wanted=("embedding",), dtype=dtype)
    step.build(prepared, batches, parts, parts)
    had = step.with_gradient(prepared)
    base = step.build(prepared, batches, (), parts, had)
    calls = count(base)
    assert calls["embedding"] == calls["embedding_dense_backward"] == 0 and step.with_gradient(prepared) == had
    assert [p is prepared.model.embedding.weight for p, _ in base.fill] == [True]


@pytest.mark.skipif(not hasattr(torch.library, "get_kernel"), reason="needs torch >= 2.9")
def test_residual_additions_on_request():
    prepared, batches, parts = taken(Transformer(), tokens(), wanted=("residual",))
    full = count(step.build(prepared, batches, parts, parts))
    calls = count(step.build(prepared, batches, (), parts))
    assert full["add"] - calls["add"] == 2 and multiplications(full) == multiplications(calls)
    assert set(dict(prepared.model.named_parameters())) - {"k.bias"} <= small.gradients(prepared)


@pytest.mark.skipif(not hasattr(torch.library, "get_kernel"), reason="needs torch >= 2.9")
def test_residual_additions_in_place_before_relu_in_place():
    """As every ResNet of torchvision: `out += shortcut(x); out = relu_(out)`, with batch counters that add a number."""
    class Block(ConvNet):
        def __init__(self):
            super().__init__(inplace=True)
            self.shortcut = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.conv1(x)
            y = self.norm2(self.conv2(x))
            y += self.shortcut(x)
            return self.head(self.act(y).mean((2, 3)))
    prepared, batches, parts = taken(Block(), images(), wanted=("residual",))
    full = count(step.build(prepared, batches, parts, parts))
    base = step.build(prepared, batches, (), parts)
    calls = count(base)
    assert full["add_"] - calls["add_"] == 1 and calls["native_batch_norm"] == calls["add_"] == 1    # the counter still counts
    assert multiplications(full) == multiplications(calls) and "conv1.weight" in small.gradients(prepared)
    assert full["convolution_backward"] == calls["convolution_backward"] == 3
    assert "shortcut.weight" in small.gradients(prepared)


def test_residual_needs_a_new_enough_torch(monkeypatch):
    monkeypatch.delattr(torch.library, "get_kernel", raising=False)
    with pytest.raises(UsageError, match="2.9"):
        taking.Overrides((), parts=("residual",))


# ---------------------------------------------------------------- any small network

LAYERS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1), "linear": lambda: nn.Linear(6, 6), "batch": lambda: nn.BatchNorm2d(4),
    "group": lambda: nn.GroupNorm(2, 4), "layer": lambda: nn.LayerNorm(6), "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "rms": lambda: nn.RMSNorm(6), "byhand": lambda: small.RMSNorm(6), "relu": nn.ReLU, "relu_": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU, "silu_": lambda: nn.SiLU(inplace=True), "prelu": nn.PReLU, "tanh": nn.Tanh, "leaky": nn.LeakyReLU,
    "softplus": nn.Softplus, "newgelu": small.NewGELU, "mish": nn.Mish, "dropout": nn.Dropout, "dropout2d": nn.Dropout2d,
    "pool": lambda: nn.MaxPool2d(3, 1, 1), "softmax": lambda: nn.Softmax(-1),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=8))
def test_any_sequence_of_layers_is_taken_apart_and_restored(names):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), *[LAYERS[n]() for n in names])
    prepared, batches, parts = taken(model, torch.randn(2, 4, 6, 6))
    inner = [p for p in parts if p in taking.OPERATOR_PARTS]
    full = step.build(prepared, batches, inner, parts)
    had, full_calls = step.with_gradient(prepared), count(full)
    kept, rng = small.state(prepared.model), torch.get_rng_state()
    before = prepared.model(batches.inputs)
    small_state = small.state(prepared.model)
    for removed in [[p] for p in inner] + [inner]:
        variant = step.build(prepared, batches, [p for p in inner if p not in removed], parts, had)
        calls = count(variant)
        assert census.residue(calls, removed) == {}
        assert multiplications(calls) == multiplications(full_calls)
        assert step.with_gradient(prepared) == had
    for (name, now), then in zip(small.state(prepared.model).items(), small_state.values()):
        if name in dict(prepared.model.named_parameters()):
            assert torch.equal(now, then) and torch.equal(now, kept[name])
    torch.set_rng_state(rng)
    assert torch.equal(prepared.model(batches.inputs), before)
