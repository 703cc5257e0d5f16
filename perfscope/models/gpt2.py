"""GPT-2-small-shaped decoder: 12 layers, 768 wide, 12 heads, context 1024 (Radford 2019).

124.44 M parameters; the embedding is also the output layer. No dropout, as today's pre-training runs do without it.
":tiny" has 2 layers, 128 wide, 4 heads, context 128, vocabulary 512, for CPUs and tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.errors import UsageError
from perfscope.workload import Workload
from perfscope.workload.data import token_batch, token_pipeline

VARIANTS: tuple[str, ...] = ("", "tiny")
SIZES = {"": dict(layers=12, dim=768, heads=12, context=1024, vocab=50257),
         "tiny": dict(layers=2, dim=128, heads=4, context=128, vocab=512)}


class Attention(nn.Module):
    """Causal multi-head self-attention over (n, tokens, dim)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, d = x.shape
        q, k, v = (y.view(n, t, self.heads, d // self.heads).transpose(1, 2) for y in self.qkv(x).split(d, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    """Attention and a four times wider MLP, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Tokens (n, t) int64 -> logits (n, t, vocab)."""

    def __init__(self, layers: int, dim: int, heads: int, context: int, vocab: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def optimizer(parameters) -> torch.optim.Optimizer:
    """AdamW with the betas and the decay of GPT-3's appendix B."""
    return torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)


def workload(variant: str = "") -> Workload:
    """One training step of the decoder; a sample is a sequence of `context` tokens."""
    if variant not in VARIANTS:
        raise UsageError(f"gpt2 has no variant {variant!r}", f"Known: {', '.join(v for v in VARIANTS if v)}")
    size = SIZES[variant]
    context, vocab = size["context"], size["vocab"]
    return Workload(GPT2(**size), loss, optimizer, token_batch(context, vocab), token_pipeline(context, vocab),
                    name=f"gpt2:{variant}".rstrip(":"), source="built-in", input_shape=(context,), classes=vocab,
                    data_words="random windows of a uint16 token array, widened to int64")
