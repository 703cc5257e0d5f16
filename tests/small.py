"""Small models of every kind of part, and helpers that take them apart: for the tests of perfscope/workload."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.workload import Workload, step
from perfscope.workload.census import Count


class ConvNet(nn.Module):
    """Two conv-norm-act blocks with dropout, pooling, a residual and a linear head, like any image network."""

    def __init__(self, norm=nn.BatchNorm2d, act=nn.ReLU, inplace=False, dropout=0.0, width=8):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, width, 3, padding=1), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.act = act(inplace=True) if inplace else act()
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, 10)

    def forward(self, x):
        x = F.max_pool2d(self.act(self.norm1(self.conv1(x))), 2)
        x = x + self.act(self.norm2(self.conv2(x)))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Transformer(nn.Module):
    """One pre-norm block: attention with grouped heads where asked, a GELU MLP, dropout, tied embedding where asked."""

    def __init__(self, dim=16, heads=4, kv_heads=4, norm=nn.LayerNorm, act=nn.GELU, dropout=0.0, tied=False, vocabulary=32):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.norm1, self.norm2, self.heads, self.kv_heads = norm(dim), norm(dim), heads, kv_heads
        self.q, self.k, self.v = (nn.Linear(dim, n * dim // heads) for n in (heads, kv_heads, kv_heads))
        self.out, self.drop = nn.Linear(dim, dim), nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), act(), nn.Linear(2 * dim, dim))
        self.head = nn.Linear(dim, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        n, t, d = x.shape
        y = self.norm1(x)
        q = self.q(y).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = (f(y).view(n, t, self.kv_heads, -1).transpose(1, 2) for f in (self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.kv_heads)
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(n, t, d)))
        return self.head(x + self.mlp(self.norm2(x)))


class RMSNorm(nn.Module):
    """As transformers writes LlamaRMSNorm: no operator of its own."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class NewGELU(nn.Module):
    """As transformers writes NewGELUActivation: a tanh inside."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x ** 3)))


class GlobalResponseNorm(nn.Module):
    """As ConvNeXt v2 has it, channels first."""

    def __init__(self, dim):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        g = x.norm(p=2, dim=(2, 3), keepdim=True)
        n = g / (g.mean(dim=1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), x * n)


class DropPath(nn.Module):
    """As timm writes it: a whole sample's branch is dropped."""

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0 or not self.training:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p)


class BatchNormAct(nn.BatchNorm2d):
    """As timm writes BatchNormAct2d: norm and activation in one module."""

    def __init__(self, width):
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps))


def images(n=4, side=8):
    return torch.randn(n, 3, side, side)


def tokens(n=2, length=6):
    return torch.randint(0, 32, (n, length))


def workload(model, x, *, optimizer=None, loss=None, **more) -> Workload:
    """The model with a mean-square loss and SGD with momentum, on this one batch."""
    loss = loss or (lambda output, target: output.float().square().mean())
    optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    return Workload(model, loss, optimizer, (x, torch.zeros(len(x))), **more)


def taken(model, x, *, wanted=(), optimizer=None, loss=None, **settings):
    """(prepared, batches, parts): ready to build variants. The batch size is that of x."""
    prepared = step.prepare(workload(model, x, optimizer=optimizer, loss=loss), **settings)
    batches = step.load_batches(prepared, len(x))
    return prepared, batches, step.present_parts(prepared, batches, wanted)


def count(variant) -> Counter:
    """ATen operators of one step of a variant, forward, backward and optimizer."""
    with variant, Count() as counted:
        variant.step()
    return Counter(counted.calls)


def gradients(prepared) -> set[str]:
    """The parameters with a gradient that is finite and not all zero."""
    return {n for n, p in prepared.model.named_parameters()
            if p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.any())}


def assert_pristine() -> None:
    """Operators do what PyTorch made them to do, and remember how to go back."""
    x = torch.linspace(-2, 3, 24).view(1, 2, 3, 4).requires_grad_()
    names = {
        "ReluBackward0": torch.relu(x), "GeluBackward0": F.gelu(x), "SoftmaxBackward0": F.softmax(x, -1),
        "NativeBatchNormBackward0": F.batch_norm(x, None, None, training=True),
        "NativeLayerNormBackward0": F.layer_norm(x, (4,)), "NativeGroupNormBackward0": F.group_norm(x, 2),
        "ScaledDotProductFlashAttentionForCpuBackward0": F.scaled_dot_product_attention(x, x, x),
        "MaxPool2DWithIndicesBackward0": F.max_pool2d(x, 2), "AddBackward0": x + x.exp(), "MulBackward0": F.dropout(x, 0.5),
        "EmbeddingBackward0": F.embedding(torch.tensor([1]), x[0, 0]),
    }
    for name, y in names.items():
        assert type(y.grad_fn).__name__ == name
    assert torch.equal(torch.relu(x), x.clamp(min=0)) and not torch.equal(F.gelu(x), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.prelu(x, x[0, 0, 0, :1]).dtype == torch.bfloat16      # autocast's own rule for it


def state(model) -> dict:
    """Every tensor of a model, as it is now."""
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
