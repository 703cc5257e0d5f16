"""Tiny Llama-shaped decoder: RMSNorm, rotary positions, grouped queries, SiLU-gated MLP (Touvron 2023).

4 layers, 256 wide, 8 heads of queries and 2 of keys and values, context 256, vocabulary 4096: a model with every
operation of today's decoders that a CPU can train.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.workload import Workload
from perfscope.workload.data import token_batch, token_pipeline

VARIANTS: tuple[str, ...] = ("",)
LAYERS, DIM, HEADS, KV_HEADS, HIDDEN = 4, 256, 8, 2, 768
CONTEXT, VOCAB = 256, 4096
HEAD = DIM // HEADS
THETA = 10000.0             # base of the rotary angles, Su 2021


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on (n, heads, t, head): each pair (first half, second half) turned by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal attention; each head of keys and values serves HEADS / KV_HEADS heads of queries."""

    def __init__(self):
        super().__init__()
        self.q, self.o = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.kv = nn.Linear(DIM, 2 * KV_HEADS * HEAD, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, HEADS, HEAD).transpose(1, 2)
        k, v = self.kv(x).view(n, t, 2, KV_HEADS, HEAD).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(n, t, DIM))


class Block(nn.Module):
    """Attention and a SiLU-gated MLP, each behind an RMSNorm and beside a shortcut."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.RMSNorm(DIM), Attention(), nn.RMSNorm(DIM)
        self.gate, self.up = nn.Linear(DIM, HIDDEN, bias=False), nn.Linear(DIM, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Tokens (n, t) int64 -> logits (n, t, vocab)."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.RMSNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)
        angles = torch.outer(torch.arange(CONTEXT), THETA ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, t = self.tokens(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        return self.head(self.norm(x))


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def optimizer(parameters) -> torch.optim.Optimizer:
    """AdamW with the betas and the decay of the Llama paper."""
    return torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)


def workload(variant: str = "") -> Workload:
    """One training step of the decoder; a sample is a sequence of 256 tokens."""
    return Workload(Llama(), loss, optimizer, token_batch(CONTEXT, VOCAB), token_pipeline(CONTEXT, VOCAB),
                    name="llama_tiny", source="built-in", input_shape=(CONTEXT,), classes=VOCAB,
                    data_words="random windows of a uint16 token array, widened to int64")
