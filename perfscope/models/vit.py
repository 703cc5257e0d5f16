"""Small vision transformer for CIFAR-sized images: patch 4, dim 192, depth 6, 3 heads (Dosovitskiy 2020).

Pre-norm blocks, learned positions, and the average of the tokens instead of a class token (Beyer 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.workload import Workload
from perfscope.workload.data import image_batch, image_pipeline

VARIANTS: tuple[str, ...] = ("",)
SHAPE, CLASSES = (3, 32, 32), 10
PATCH, DIM, DEPTH, HEADS = 4, 192, 6, 3


class Attention(nn.Module):
    """Multi-head self-attention over (n, tokens, dim)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    """Attention and a four times wider MLP, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """(n, 3, 32, 32) -> logits (n, classes)."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, PATCH, stride=PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (SHAPE[1] // PATCH) * (SHAPE[2] // PATCH), DIM))
        self.blocks = nn.Sequential(*[Block(DIM, HEADS) for _ in range(DEPTH)])
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


def optimizer(parameters) -> torch.optim.Optimizer:
    """AdamW, the usual setting for small transformers."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)


def workload(variant: str = "") -> Workload:
    """One training step of the small ViT."""
    return Workload(ViT(), nn.CrossEntropyLoss(), optimizer, image_batch(SHAPE, CLASSES),
                    image_pipeline(SHAPE, CLASSES), name="vit", source="built-in", input_shape=SHAPE, classes=CLASSES,
                    data_words="uint8 images: pad 4 reflect, crop, flip, normalise, cutout 8x8")
