"""FLOPs and bytes against counts by hand; ceilings against their own definition."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perfscope.measure import floor
from perfscope.measure.floor import ceilings, count_layers, flops


def step(model, *inputs):
    return lambda: model(*inputs).pow(2).sum().backward()


def only(layers, direction):
    return [x for x in layers if x.direction == direction]


def test_conv_by_hand():
    """5 images 3x8x8, 3x3 to 4 channels without padding: 6x6 out."""
    x = torch.randn(5, 3, 8, 8, requires_grad=True)
    forward, backward = count_layers(step(nn.Conv2d(3, 4, 3), x), 5)
    macs = 6 * 6 * 4 * 3 * 9
    image, out, weight, bias = 4 * 3 * 64, 4 * 4 * 36, 4 * 4 * 27, 4 * 4
    assert (forward.direction, forward.flops, forward.bytes, forward.fixed_bytes) == \
        ("forward", 2 * macs, image + out, weight + bias)
    # reads the output's gradient, the input and the weight; writes the gradients of input, weight and bias
    assert (backward.direction, backward.flops, backward.bytes, backward.fixed_bytes) == \
        ("backward", 4 * macs, out + 2 * image, 2 * weight + bias)
    assert forward.op == "convolution" and forward.shape == "3x8x8 * 4x3x3x3" and forward.module == "Conv2d"
    assert backward.shape.endswith("-> input, weight")


def test_first_convs_missing_input_gradient_is_not_counted():
    forward, backward = count_layers(step(nn.Conv2d(3, 4, 3, bias=False), torch.randn(5, 3, 8, 8)), 5)
    assert backward.flops == forward.flops
    image, out, weight = 4 * 3 * 64, 4 * 4 * 36, 4 * 4 * 27
    assert (backward.bytes, backward.fixed_bytes) == (out + image, weight)     # the weight is not even read
    assert backward.shape.endswith("-> weight")


def test_frozen_conv_has_only_the_input_gradient():
    conv = nn.Conv2d(3, 4, 3, bias=False)
    conv.weight.requires_grad_(False)
    forward, backward = count_layers(step(conv, torch.randn(5, 3, 8, 8, requires_grad=True)), 5)
    assert backward.flops == forward.flops and backward.bytes == forward.bytes
    assert backward.fixed_bytes == forward.fixed_bytes == 4 * 4 * 27


@pytest.mark.parametrize("conv, macs", [
    (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8 * 8 * 8 * 9),
    (nn.Conv2d(8, 16, 3, padding=1, groups=4), 8 * 8 * 16 * 2 * 9),
    (nn.Conv2d(8, 4, 3, stride=2, padding=1), 4 * 4 * 4 * 8 * 9),
    (nn.ConvTranspose2d(8, 4, 2, stride=2), 8 * 8 * 8 * 4 * 4),
])
def test_grouped_strided_and_transposed_convs(conv, macs):
    layers = count_layers(step(conv, torch.randn(2, 8, 8, 8, requires_grad=True)), 2)
    assert flops(layers) == (2 * macs, 6 * macs)


def test_linear_by_hand():
    x = torch.randn(5, 7, requires_grad=True)
    forward, *backward = count_layers(step(nn.Linear(7, 3), x), 5)
    assert (forward.flops, forward.bytes, forward.fixed_bytes) == (2 * 7 * 3, 4 * (7 + 3), 4 * (21 + 3))
    assert forward.shape == "7 * 7x3"
    assert {(b.shape, b.flops, b.bytes, b.fixed_bytes) for b in backward} == {
        ("3 * 3x7", 42, 40, 84),                    # input gradient
        ("3xn * nx7", 42, 40, 84)}                  # weight gradient: does not grow with the batch


def test_tokens_and_casts_keep_weights_apart_from_activations():
    """Linear over (batch, tokens, width) under autocast: half the bytes, and the cast weight is still a weight."""
    x = torch.randn(2, 5, 8)
    layer = nn.Linear(8, 6, bias=False)

    def half():
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().pow(2).sum().backward()
    for layers, size in (count_layers(step(layer, x), 2), 4), (count_layers(half, 2), 2):
        forward, backward = layers
        assert (forward.flops, forward.bytes, forward.fixed_bytes) == (2 * 5 * 48, size * 5 * 14, size * 48)
        assert (backward.flops, backward.bytes, backward.fixed_bytes) == (2 * 5 * 48, size * 5 * 14, size * 48)


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_sets_the_bytes_and_layout_does_not(dtype, fmt):
    model = nn.Conv2d(4, 4, 1, bias=False).to(dtype).to(memory_format=fmt)
    x = torch.randn(2, 4, 8, 8).to(dtype).to(memory_format=fmt)
    forward, _ = count_layers(step(model, x), 2)
    assert (forward.bytes, forward.fixed_bytes) == (dtype.itemsize * 2 * 256, dtype.itemsize * 16)


def test_work_does_not_depend_on_the_batch_it_was_counted_at():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    a, b = (count_layers(step(model, torch.randn(n, 3, 8, 8)), n) for n in (2, 9))
    assert a == b


@pytest.mark.parametrize("causal, pairs", [(False, 64), (True, 36)])
def test_attention_by_hand(causal, pairs):
    """2 samples, 4 heads of queries, 2 of keys and values, 8 tokens, 16 wide; causal needs 8 * 9 / 2 pairs."""
    q = torch.randn(2, 4, 8, 16, requires_grad=True)
    k, v = (torch.randn(2, 2, 8, 16, requires_grad=True) for _ in range(2))
    attend = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    layers = count_layers(lambda: attend().sum().backward(), 2)
    one = 2 * 4 * pairs * 16
    assert flops(layers) == (2 * one, 7 * one)      # scores and values; scores again and four gradients
    assert all(x.fixed_bytes == 0 and "scaled_dot_product" in x.op for x in layers)
    assert only(layers, "forward")[0].bytes >= 4 * 16 * 8 * (4 + 2 + 2 + 4)


def test_attention_by_parts_is_seen_as_its_matmuls():
    q = torch.randn(2, 4, 8, 16, requires_grad=True)
    layers = count_layers(lambda: ((q @ q.transpose(-1, -2)).softmax(-1) @ q).sum().backward(), 2)
    one = 2 * 4 * 64 * 16
    assert flops(layers) == (2 * one, 6 * one) and {x.op for x in layers} == {"bmm"}
    assert all(x.fixed_bytes == 0 for x in layers)


def test_counts_as_torchs_own_counter_where_that_is_right():
    from torch.utils.flop_counter import FlopCounterMode
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(200, 10))
    x = torch.randn(4, 3, 16, 16)
    layers = count_layers(step(model, x), 4)
    with FlopCounterMode(display=False) as torchs:
        step(model, x)()
    assert flops(layers)[1] * 4 == torchs.get_total_flops()


def test_identical_layers_are_merged_and_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
            self.out = nn.Linear(6, 2)

        def forward(self, x):
            for layer in self.stack:
                x = layer(x)
            return self.out(x)
    layers = count_layers(step(Net(), torch.randn(4, 6)), 4)
    forward = only(layers, "forward")
    assert [(x.count, x.module) for x in forward] == [(3, "Net.stack.*"), (1, "Net.out")]
    assert flops(layers)[0] == 3 * 72 + 24
    assert sum(x.count for x in only(layers, "backward")) == 2 * 4 - 1      # the first needs no input gradient


def test_inference_mode_counts_the_same_forward():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)), torch.randn(2, 3, 8, 8)
    train = flops(count_layers(step(model, x), 2))[0]
    with torch.inference_mode():
        assert flops(count_layers(lambda: model(x), 2)) == (train, train)


def test_optimizer_and_pointwise_work_are_not_layers():
    model, x = nn.Linear(7, 3), torch.randn(5, 7)
    optimizer = torch.optim.AdamW(model.parameters())

    def whole():
        step(model, x)()
        optimizer.step()
    assert count_layers(whole, 5) == count_layers(step(model, x), 5)


def test_ceilings_are_work_over_time():
    found = ceilings("cpu", "float32")
    e = found.extra
    assert found.dtype == "float32" and found.flops_per_s > 0 and found.copy_bytes_per_s > 0
    assert e["matmul"] == pytest.approx(2 * e["matmul_side"] ** 3 / e["matmul_s"])
    assert found.flops_per_s == max(e["matmul"], e["convolution"]) > 0
    assert found.copy_bytes_per_s == pytest.approx(e["copy_bytes"] / e["copy_s"])
    assert e["copy_bytes"] >= 2 * floor.CPU_COPY_BYTES
    assert e["copy_bytes"] >= 2 * min(1 << 30, 4 * floor.last_level_cache_bytes())


def test_ceilings_multiply_in_the_steps_dtype_with_random_data(monkeypatch):
    seen, real = [], torch.mm

    def spy(a, b, out):
        seen.append((a.dtype, out.dtype, a.float().std().item()))
        return real(a, b, out=out)
    monkeypatch.setattr(torch, "mm", spy)
    monkeypatch.setattr(floor, "CPU_SIDES", (64,))
    monkeypatch.setattr(floor, "CPU_COPY_BYTES", 1 << 22)
    assert ceilings("cpu", "amp-bfloat16").dtype == "amp-bfloat16"
    assert {s[:2] for s in seen} == {(torch.bfloat16, torch.bfloat16)} and all(0.8 < s[2] < 1.2 for s in seen)
