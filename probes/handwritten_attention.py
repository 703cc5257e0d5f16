"""Attention written out by hand: matmul, softmax, matmul, with the whole matrix of scores in memory.

## What it sees
In the forward pass, a batched matmul whose result goes through nothing but scaling, masking and casts into a softmax over the
last dimension, and from there, through nothing but dropout and casts, into a second batched matmul. (nn.MultiheadAttention that
returns its weights is the probe attention_returns_weights.)

## Why it is slow
Every operator in between reads and writes a tensor of (heads, queries, keys), and several of them are kept for the backward
pass. Fused attention never writes it.

## Cure
F.scaled_dot_product_attention: scale, mask, causality and dropout are its arguments. It is a hint: only the author knows what
else the code does with the scores. Models of transformers: attn_implementation="sdpa".

## Not for
Code that uses the attention's weights, other scores than scaled products (biases that are learned are fine: they are a mask).
Results differ by rounding.

## References
SLOW_PATHS S24; torch.nn.functional.scaled_dot_product_attention and torch.nn.MultiheadAttention in PyTorch's documentation.
"""

import math

import torch
import torch.nn.functional as F

from perfscope.probe import Finding, Place, add

USES = ("ops",)
SUBJECT = "transformer"
CODE = "y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p if self.training else 0.0)"
PRODUCTS = ("bmm", "baddbmm", "matmul")
VIEWS = {"view", "_unsafe_view", "reshape", "expand", "transpose", "permute", "unsqueeze", "squeeze", "detach", "alias", "slice", "select", "t",
         "clone", "contiguous", "_to_copy", "as_strided", "split", "unbind", "lift_fresh"}
BEFORE = VIEWS | {"mul", "mul_", "div", "div_", "add", "add_", "sub", "masked_fill", "masked_fill_", "where", "tril", "triu", "ones", "zeros", "full", "eq",
                  "ne", "lt", "gt", "le", "ge", "logical_not", "bitwise_not", "bitwise_and", "scalar_tensor", "full_like", "arange", "ones_like",
                  "zeros_like", "new_ones", "new_zeros", "amax", "tanh"}
AFTER = VIEWS | {"native_dropout", "bernoulli_", "empty_like", "mul", "mul_", "div_", "div"}


def detect(evidence):
    kinds = {m.path: m.kind for m in evidence.modules or ()}
    found = [f for f in _found([o for o in evidence.ops or () if o.phase == "forward"]) if kinds.get(f[1].module) != "MultiheadAttention"]
    if not found:
        return
    places = tuple(Place(s.module or s.line or "the model", f"{first.name} -> {', '.join(between) or 'nothing'} -> softmax over scores {s.outputs[0].shape} "
                         f"{s.outputs[0].dtype} -> {last.name}" + (f"; {s.line}" if s.line else "")) for first, s, last, between in found)
    share = evidence.time_share("bmm", "baddbmm", "_softmax", "_softmax_backward_data", "masked_fill", "native_dropout", "native_dropout_backward")
    yield Finding("", f"{len(found)} attentions are written out by hand", places, "use F.scaled_dot_product_attention", share=share,
                  basis="ceiling" if share is not None else "",
                  evidence={"attentions": len(found), "scores_bytes": sum(s.outputs[0].bytes for _, s, _, _ in found)})


def _found(ops):
    """(first matmul, softmax, second matmul, names of what lies between the first and the softmax) of each."""
    for i, s in enumerate(ops):
        if s.name != "_softmax" or not s.outputs or len(s.outputs[0].shape) < 3 or s.args.get("dim") not in (-1, len(s.outputs[0].shape) - 1):
            continue
        scores, between, first = s.outputs[0].numel, [], None
        for o in reversed(ops[:i]):
            if o.name in PRODUCTS and o.outputs and o.outputs[0].numel == scores:
                first = o
                break
            if o.name not in BEFORE:
                break
            if o.name not in VIEWS and o.outputs and o.outputs[0].numel == scores:
                between.insert(0, o.name)
        last = next((o for o in ops[i + 1:] if o.name not in AFTER), None)
        if first is not None and last is not None and last.name in PRODUCTS and any(t.numel == scores for t in last.inputs):
            yield first, s, last, between


def written_out(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Attention as it was before scaled_dot_product_attention."""
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(), float("-inf"))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


def by_hand(model):
    """The model, with every F.scaled_dot_product_attention in its forward pass written out by hand."""
    inner = model.forward

    def forward(*args, **kwargs):
        fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, written_out
        try:
            return inner(*args, **kwargs)
        finally:
            F.scaled_dot_product_attention = fused
    model.forward = forward


def plant(workload):
    return add(workload, on_model=[by_hand])
