"""nn.MultiheadAttention returns its weights, so it computes them: matmul, softmax, matmul instead of fused attention.

## What it sees
A softmax inside an nn.MultiheadAttention's own forward pass: it was called with need_weights=True, which is the default.

## Why it is slow
To give the weights back it has to have the whole matrix of (heads, queries, keys), to average it over the heads, and to keep
it for the backward pass. With need_weights=False it calls scaled_dot_product_attention, which fuses all that away.

## Cure
need_weights=False. The result is the same up to rounding; the second thing that the module gives is then None.

## Not for
Code that uses the weights.

## References
SLOW_PATHS S24; torch.nn.MultiheadAttention in PyTorch's documentation ("need_weights ... set to False for best performance").
"""

from functools import partial

import torch
from torch import nn

from perfscope.probe import Finding, Place, add

USES = ("ops",)
SUBJECT = "transformer"
CODE = "y, _ = self.attention(x, x, x, need_weights=False)"


def detect(evidence):
    kinds = {m.path: m.kind for m in evidence.modules or ()}
    found = [o for o in evidence.calls("_softmax", phase="forward") if kinds.get(o.module) == "MultiheadAttention" and o.outputs]
    if not found:
        return
    places = tuple(Place(o.module, f"softmax over scores {o.outputs[0].shape} {o.outputs[0].dtype}" + (f"; {o.line}" if o.line else "")) for o in found)
    share = evidence.time_share("bmm", "baddbmm", "_softmax", "_softmax_backward_data", "native_dropout", "native_dropout_backward")
    yield Finding("", f"{len(found)} nn.MultiheadAttention return their weights, so they cannot use fused attention", places,
                  "call it with need_weights=False", share=share, basis="ceiling" if share is not None else "",
                  evidence={"attentions": len(found), "scores_bytes": sum(o.outputs[0].bytes for o in found)})


def without_weights(model):
    """Every nn.MultiheadAttention is called with need_weights=False."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.forward = partial(_unasked, module.forward)      # not a hook: that costs some microseconds per call


def _unasked(forward, *args, **kwargs):
    """The same call; need_weights is the fifth of the positional arguments (query, key, value, key_padding_mask, ...)."""
    if len(args) > 4:
        return forward(*args[:4], False, *args[5:], **kwargs)
    return forward(*args, **{**kwargs, "need_weights": False})


def fix(workload):
    return add(workload, on_model=[without_weights])


def multihead(model, **options):
    """The contract's transformer, with its attention done by an nn.MultiheadAttention of the same weights, called with these options."""
    dim, device, dtype = model.out.in_features, model.out.weight.device, model.out.weight.dtype
    attention = nn.MultiheadAttention(dim, 2, batch_first=True, device=device, dtype=dtype)
    with torch.no_grad():
        for mine, theirs in ((attention.in_proj_weight, model.qkv.weight), (attention.in_proj_bias, model.qkv.bias),
                             (attention.out_proj.weight, model.out.weight), (attention.out_proj.bias, model.out.bias)):
            mine.copy_(theirs)
    model.attention = attention
    del model.qkv, model.out

    def forward(tokens):
        x = model.embedding(tokens)
        y, mask = model.norm1(x), nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        x = x + model.attention(y, y, y, attn_mask=mask, is_causal=True, **options)[0]
        return model.head(x + model.down(nn.functional.gelu(model.up(model.norm2(x)))))
    model.forward = forward


def healthy(workload):
    """An nn.MultiheadAttention whose weights are not asked for."""
    return add(workload, on_model=[partial(multihead, need_weights=False)])


def plant(workload):
    return add(workload, on_model=[multihead])
