"""Built-in models: published sizes and FLOPs to the printed digit, and a training step of each."""

import ast

import pytest
import torch
from torch import nn

from perfscope import registry
from perfscope.errors import UsageError
from perfscope.measure.floor import count_layers, flops

NAMES = registry.names("models")


def build(name, variant=""):
    torch.manual_seed(0)
    return registry.load("models", name).workload(variant)


def counted(workload, n=2):
    x, y = workload.batch(n)
    return flops(count_layers(lambda: workload.loss(workload.model(x), y).backward(), n))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_flops_of_resnet9():
    workload = build("resnet9")
    forward, step = counted(workload)
    assert f"{forward / 1e6:.1f}" == "758.5" and f"{step / 1e6:.0f}" == "2272"
    assert f"{parameters(workload.model) / 1e6:.3f}" == "6.573"


def test_flops_of_resnet18_cifar():
    assert f"{counted(build('resnet18_cifar'))[1] / 1e6:.0f}" == "2756"


def test_resnet18_cifar_shortcuts_decide_the_count():
    """Other shortcuts than the chosen one do not give the article's 2 756."""
    workload = build("resnet18_cifar")

    class Pooled(nn.Module):                    # a shortcut without a convolution: subsample, repeat the channels
        def __init__(self, conv):
            super().__init__()
            self.stride, self.times = conv.stride[0], conv.out_channels // conv.in_channels

        def forward(self, x):
            return x[:, :, ::self.stride, ::self.stride].repeat(1, self.times, 1, 1)

    workload.model.blocks[0].shortcut = nn.Conv2d(64, 64, 1, bias=False)
    assert f"{counted(workload)[1] / 1e6:.0f}" == "2782"
    for block in workload.model.blocks:
        block.shortcut = Pooled(block.shortcut) if block.shortcut else None
    assert f"{counted(workload)[1] / 1e6:.0f}" == "2725"


def test_flops_of_mnist_cnn():
    workload = build("mnist_cnn")
    assert f"{counted(workload)[1] / 1e6:.2f}" == "6.77"
    assert f"{parameters(workload.model) / 1e3:.0f}" == "215"
    optimizer = workload.optimizer(workload.model.parameters())
    assert optimizer.defaults["lr"] == 0.01 and optimizer.defaults["betas"] == (0.7, 0.9)


def test_only_the_chosen_padding_of_mnist_cnn_gives_both_numbers():
    found = {}
    for pad1, pad2 in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)):
        workload = build("mnist_cnn")
        model = workload.model
        model.conv1.padding, model.conv2.padding = (pad1, pad1), (pad2, pad2)
        side = ((28 + 2 * pad1 - 4) // 2 + 2 * pad2 - 2) // 2
        model.fc1 = nn.Linear(32 * side * side, 256)
        found[pad1, pad2] = f"{parameters(model) / 1e3:.0f} k, {counted(workload)[1] / 1e6:.2f} M"
    assert found[0, 0] == "215 k, 6.77 M" and found[1, 0] == "215 k, 7.88 M"
    assert not any(v.startswith("215 k") for k, v in found.items() if k not in ((0, 0), (1, 0)))


@pytest.mark.parametrize("variant, millions, gmacs", [("", 25.557, 3.8), ("b", 25.557, 4.1),
                                                      ("c", 25.576, 4.3), ("d", 25.576, 4.3)])
def test_resnet50_variants(variant, millions, gmacs):
    """Published parameters; multiply-adds of Bag of Tricks' table 5 (from memory of the paper, so within 0.06 G)."""
    workload = build("resnet50", variant)
    assert f"{parameters(workload.model) / 1e6:.3f}" == f"{millions:.3f}"
    x, _ = workload.batch(1)
    with torch.no_grad():
        forward, step = flops(count_layers(lambda: workload.model(x), 1))
    assert forward == step and abs(forward / 2e9 - gmacs) < 0.06


def test_resnet50_variants_differ_where_they_should():
    strides = {}
    for v in ("", "b", "c", "d"):
        body = build("resnet50", v).model.stages[1][0].body
        strides[v] = [m.stride[0] for m in body.modules() if isinstance(m, nn.Conv2d)]
    assert strides == {"": [2, 1, 1], "b": [1, 2, 1], "c": [1, 2, 1], "d": [1, 2, 1]}
    pools = {v: sum(isinstance(m, nn.AvgPool2d) for m in build("resnet50", v).model.modules()) for v in ("c", "d")}
    assert pools == {"c": 0, "d": 3}


def test_gpt2_has_the_published_size_and_ties_its_embedding():
    with torch.device("meta"):
        model = registry.load("models", "gpt2").workload().model
    assert parameters(model) == 124_439_808
    tiny = build("gpt2", "tiny").model
    assert tiny.head.weight is tiny.tokens.weight


@pytest.mark.parametrize("name", ["gpt2", "llama_tiny"])
def test_decoders_do_not_see_the_future(name):
    workload = build(name, "tiny" if name == "gpt2" else "")
    x, _ = workload.batch(1)
    later = x.clone()
    later[0, 50:] = (x[0, 50:] + 1) % workload.classes
    with torch.no_grad():
        a, b = workload.model(x), workload.model(later)
    assert torch.allclose(a[:, :50], b[:, :50], atol=1e-5) and not torch.allclose(a[:, 50:], b[:, 50:], atol=1e-3)


def test_llama_positions_are_relative():
    """Rotating queries and keys by one more place changes no product: the definition of rotary positions."""
    module = registry.load("models", "llama_tiny")
    model = module.Llama()
    q, k = torch.randn(2, 1, 1, 1, module.HEAD)
    def product(i, j):
        return (module.rotate(q, model.cos[i], model.sin[i]) * module.rotate(k, model.cos[j], model.sin[j])).sum()
    assert torch.allclose(product(3, 1), product(103, 101), atol=1e-4)
    assert not torch.allclose(product(3, 1), product(3, 2), atol=1e-3)


def variants():
    for name in NAMES:
        for variant in registry.load("models", name).VARIANTS:
            if (name, variant) != ("gpt2", ""):            # 124 M parameters: the tiny one has the same code
                yield name, variant


@pytest.mark.parametrize("name, variant", list(variants()))
def test_three_steps_are_finite_and_reach_every_parameter(name, variant):
    workload = build(name, variant)
    x, y = workload.batch(2)
    if name == "resnet50":
        x = x[:, :, :64, :64]
    assert workload.name == (f"{name}:{variant}" if variant else name)
    optimizer = workload.optimizer(workload.model.parameters())
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = workload.loss(workload.model(x), y)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in workload.model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert all(0 < v < 100 for v in losses) and len(set(losses)) == 3      # finite, and the optimizer moved something


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_feeds_what_the_batch_feeds(name):
    module = registry.load("models", name)
    workload = build(name, "tiny" if "tiny" in module.VARIANTS else "")
    for (a, b) in zip(workload.batch(3), next(workload.data(3))):
        assert a.shape == b.shape and a.dtype == b.dtype and a.device.type == b.device.type == "cpu"
    assert tuple(a.shape[0] for a in workload.batch(5)) == (5, 5)
    assert tuple(workload.batch(1)[0].shape[1:]) == workload.input_shape


@pytest.mark.parametrize("name", ["gpt2", "resnet50"])
def test_unknown_variant_names_the_known_ones(name):
    with pytest.raises(UsageError) as e:
        build(name, "huge")
    assert "huge" in e.value.message and e.value.hint == {"gpt2": "Known: tiny", "resnet50": "Known: b, c, d"}[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_describes_itself_and_imports_no_other(name):
    assert len(registry.summary("models", name)) > 20
    tree = ast.parse((registry.folder("models") / f"{name}.py").read_text())
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not any(m.startswith("perfscope.models") for m in imported)
