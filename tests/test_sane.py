"""Rescaling by powers of two: values come back to about 1, weights come back bit for bit, the full step is never touched."""

import math

import pytest
import torch
from torch import nn

from perfscope.workload import sane, step
from tests import small
from tests.small import ConvNet, Transformer, assert_pristine, images, taken, tokens


@pytest.fixture(autouse=True)
def pristine():
    yield
    assert_pristine()


def deep(layers=30, gain=0.2, width=8, bias=False):
    """conv-norm-relu, many times: without norms its values shrink by about `gain` per layer, or grow."""
    torch.manual_seed(0)
    blocks = []
    for i in range(layers):
        conv = nn.Conv2d(width if i else 3, width, 3, padding=1, bias=bias)
        nn.init.normal_(conv.weight, std=gain / math.sqrt(conv.in_channels * 9 / 2))
        blocks += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*blocks)


def guarded(prepared, batches, parts, keep=()):
    full = step.build(prepared, batches, parts, parts)
    had = step.with_gradient(prepared)
    variant = full if tuple(keep) == tuple(parts) else step.build(prepared, batches, keep, parts, had)
    return variant, sane.make_sane(prepared, batches, variant, variant is full)


@pytest.mark.parametrize("gain", [0.2, 4.0], ids=["vanishing", "exploding"])
@pytest.mark.parametrize("dtype", ["float32", "half", "bfloat16", "amp-bfloat16", "amp-half"])
def test_deep_networks_without_norms_are_brought_back_and_restored_bit_for_bit(dtype, gain):
    prepared, batches, parts = taken(deep(gain=gain), images(2), dtype=dtype)
    before = small.state(prepared.model)
    for keep in ((), ("activation",)):
        variant, guard = guarded(prepared, batches, parts, keep)
        assert 0.1 <= guard.activation_std_low <= guard.activation_std_high <= 10
        assert guard.rescaled == len(variant.scales) > 20 and guard.conv_calls == 30
        assert all(math.log2(f).is_integer() and 1 / sane.LARGEST <= f <= sane.LARGEST for f in variant.scales.values())
        changed = [n for n, p in prepared.model.named_parameters() if p in variant.scales]
        for _ in range(3):
            with variant:
                inside = dict(prepared.model.named_parameters())
                assert all(not torch.equal(inside[n], before[n]) for n in changed)
                variant.step()
            after = small.state(prepared.model)
            assert all(torch.equal(after[n], before[n]) for n, _ in prepared.model.named_parameters() if n in changed)


def test_without_rescaling_it_would_have_been_needed():
    """What the test above brings back really is far away."""
    prepared, batches, parts = taken(deep(), images(2))
    variant = step.build(prepared, batches, (), parts)
    with variant:
        assert min(sane.observe(prepared, batches, variant).std) < 1e-6


def test_half_precision_weights_come_back_where_scaling_down_loses_bits():
    """Divided by 1024, a half below 0.06 is subnormal: multiplying back does not give it back."""
    p = nn.Parameter(torch.linspace(1e-4, 0.1, 1001, dtype=torch.float16))
    before = p.detach().clone()
    assert not torch.equal(before.mul(1 / 1024).mul(1024), before)
    with step.contextlib.ExitStack() as stack:
        step.scale(p, 1 / 1024, stack)
        assert not torch.equal(p, before)
    assert torch.equal(p, before)


def test_the_full_step_is_never_rescaled():
    """Even where its own values are far out: that is the user's network."""
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.mul_(1e4)
    prepared, batches, parts = taken(model, torch.randn(16, 8))
    full, guard = guarded(prepared, batches, parts, parts)
    assert guard.activation_std_high > 100 and guard.rescaled == 0 and full.scales == {}
    base, guard = guarded(prepared, batches, parts)
    assert guard.activation_std_high <= 10 and guard.rescaled > 0


def test_nothing_is_rescaled_without_need():
    prepared, batches, parts = taken(Transformer(), tokens(8))
    with torch.no_grad():
        for p in prepared.model.parameters():
            if p.dim() == 2 and p is not prepared.model.embedding.weight:
                p.normal_(std=1 / math.sqrt(p.shape[1]))
    variant, guard = guarded(prepared, batches, parts)
    assert guard.rescaled == 0 and 0.1 <= guard.activation_std_low <= guard.activation_std_high <= 10


def test_tied_embeddings_are_not_scaled():
    model = Transformer(tied=True)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-3 if p.dim() > 1 and p is not model.embedding.weight else 1)
        model.head.weight.mul_(50)
    prepared, batches, parts = taken(model, tokens(8))
    variant, guard = guarded(prepared, batches, parts)
    assert guard.rescaled > 0 and prepared.model.head.weight is prepared.model.embedding.weight
    assert all(p is not prepared.model.embedding.weight for p in variant.scales)


def test_biases_and_norms_are_not_scaled():
    prepared, batches, parts = taken(deep(bias=True), images(2))
    variant, _ = guarded(prepared, batches, parts)
    assert {p.dim() for p in variant.scales} == {4}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_while_rescaling_leaves_the_weights_as_they_were(error):
    prepared, batches, parts = taken(deep(), images(2))
    variant = step.build(prepared, batches, (), parts)
    before = small.state(prepared.model)
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == 2:                     # the first pass only looks, the second scales
            raise error("in the last layer")
    prepared.model[-3].register_forward_pre_hook(fail)
    with pytest.raises(error, match="last layer"):
        sane.make_sane(prepared, batches, variant, False)
    assert small.same(before, small.state(prepared.model)) and variant.scales == {} and len(calls) == 2


def test_leaving_a_variant_that_could_not_be_entered_does_not_unscale(monkeypatch):
    prepared, batches, parts = taken(deep(), images(2))
    variant, guard = guarded(prepared, batches, parts)
    before = small.state(prepared.model)
    monkeypatch.setattr(torch.library.Library, "impl", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        variant.enter()
    variant.leave()
    monkeypatch.undo()
    assert small.same(before, small.state(prepared.model)) and guard.rescaled > 0


# ---------------------------------------------------------------- what is observed

def test_a_guard_says_what_ran():
    prepared, batches, parts = taken(ConvNet(width=16), images(), dtype="amp-bfloat16", memory_format="channels_last")
    full, guard = guarded(prepared, batches, parts, parts)
    assert guard.conv_calls == 3 and guard.conv_dtypes == ("bfloat16",) and guard.conv_layouts == ("channels_last",)
    assert guard.finite and guard.loss == pytest.approx(full.loss.item()) and guard.filled_gradients == 0 and guard.extra == {}
    base, guard = guarded(prepared, batches, parts)
    assert guard.conv_calls == 3 and guard.filled_gradients == 4 and guard.conv_layouts == ("channels_last",)


def test_the_share_of_zeros_is_that_of_the_inputs_of_matmuls():
    x = torch.ones(4, 8)
    x[:, :2] = 0
    prepared, batches, parts = taken(nn.Linear(8, 8), x)
    full, guard = guarded(prepared, batches, parts, parts)
    assert guard.zero_share == 0.25


def test_an_infinite_loss_is_seen():
    prepared, batches, parts = taken(ConvNet(), images(), loss=lambda output, target: output.sum() / 0)
    full, guard = guarded(prepared, batches, parts, parts)
    assert not guard.finite and not math.isfinite(guard.loss)


def test_the_guard_of_a_step_without_its_loss():
    prepared, batches, parts = taken(ConvNet(), images(), wanted=("loss",))
    base, guard = guarded(prepared, batches, parts)
    assert base.loss.shape == (4, 10) and guard.finite and guard.loss == pytest.approx(base.loss.mean().item())


def test_all_finite():
    model = nn.Linear(2, 2)
    assert sane.all_finite(model)
    with torch.no_grad():
        model.bias[1] = math.inf
    assert not sane.all_finite(model)
