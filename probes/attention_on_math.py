"""scaled_dot_product_attention runs on its math backend: it writes the whole matrix of scores instead of fusing it away.

## What it sees
Calls of F.scaled_dot_product_attention for which PyTorch picks "math", with PyTorch's own reason for every fused backend that
it turned down (torch.backends.cuda.can_use_flash_attention and its kin on a GPU, the rules of sdp_utils_cpp.cpp on a CPU). In
a trace: `aten::_scaled_dot_product_attention_math`.

## Why it is slow
The math backend is a matmul, a softmax and a matmul over a tensor of (heads, queries, keys), each of which reads and writes
it, and which is kept for the backward pass. The fused backends hold a tile of it at a time and never write it.

## Cure
Switch the fused backends on again; give them what they take: four dimensions, a contiguous last dimension, heads of one width
(padding with zeros changes nothing). Where dropout in the attention, a mask that is trained, or float32 with grouped heads on
a GPU is the reason, this is a hint: only the model's author can drop that.

## Not for
Short sequences, where the scores fit the cache anyway; code that needs the second derivative of the attention.

## References
SLOW_PATHS S23; pytorch/pytorch#107884, #99878, #181528; aten/src/ATen/native/transformers/sdp_utils_cpp.cpp.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from perfscope.probe import Config, Evidence, Finding, Interval, OpCall, Place, Tensor, add

USES = ("ops", "trace")
SUBJECT = "transformer"
CODE = """with torch.nn.attention.sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
    ...                    # fails, and says why, where none of them can take the tensors"""
EVERY = [getattr(SDPBackend, n) for n in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH") if hasattr(SDPBackend, n)]
MATH = "aten::_scaled_dot_product_attention_math"
CURABLE = ("switched off", "4 dimensions", "last dimension", "stride", "different widths")
TIMED_BYTES = 256e6         # scores of a call that is timed alone: larger ones take too long, and much memory


def detect(evidence):
    if evidence.ops is None:
        yield from _in_trace(evidence)
        return
    causes: dict[tuple, list] = {}
    calls = list(evidence.calls("scaled_dot_product_attention", phase="forward"))
    for c in calls:
        if c.args.get("backend") == "math":
            causes.setdefault(tuple(sorted((c.args.get("why_not") or {}).items())), []).append(c)
    if not calls:               # imported by name into the user's module, so that its calls were not seen: the operators were
        found = list(evidence.calls("_safe_softmax", phase="forward"))
        causes = {(): found} if found else {}
    for why, found in causes.items():
        curable = any(all(any(word in part for word in CURABLE) for part in said.split("; ")) for _, said in why)
        words = "; ".join(f"{name}: {said}" for name, said in why)
        off = why and all(said == "switched off" for _, said in why)
        reason = "the fused backends are switched off" if off else words or "PyTorch does not say why"
        places = tuple(Place(c.module or c.line or "the model", f"{_shapes(c)}; math, because {words or 'of a reason that PyTorch does not give'}"
                             + (f"; {c.line}" if c.line and c.module else "")) for c in found)
        yield Finding("", f"{len(found)} of {max(len(calls), len(found))} attentions run on the math backend: {reason}", places,
                      "switch the fused backends on and give them tensors that they take" if curable else "change what the reason names",
                      share=_share(evidence), basis="ceiling" if _share(evidence) is not None else "", saves=_saves(evidence, found) if curable else None,
                      evidence={"calls": len(found), "why_not": dict(why), "scores_bytes": sum(_scores(c) for c in found)},
                      extra={} if curable else {"hint": True})


def _in_trace(evidence):
    rows = [r for r in evidence.trace.ops if r.name == MATH]
    if rows:
        n = sum(r.count for r in rows)
        places = tuple(Place(MATH, f"{r.count} calls{f', shapes {r.shapes}, {r.dtypes}' if r.shapes else ''}") for r in rows)
        yield Finding("", f"{n} attentions run on the math backend", places, "find out why with torch.backends.cuda.can_use_flash_attention(..., debug=True)",
                      share=_share(evidence), basis="ceiling", evidence={"calls": n}, extra={"hint": True})


def _share(evidence) -> float | None:
    """Of the forward pass of the math backend, with all that it runs, in the traced step."""
    if evidence.trace is None:
        return None
    gpu = bool(evidence.trace.device_events)
    total = sum(r.device_self_ns if gpu else r.host_self_ns for r in evidence.trace.ops)
    part = sum(r.device_total_ns if gpu else r.host_total_ns for r in evidence.trace.ops if r.name == MATH)
    return part / total if total and part else None


def _shapes(c) -> str:
    names = ("query", "key", "value", "mask") if c.name == "scaled_dot_product_attention" else ("scores",)
    dropout, causal, grouped = (c.args.get(n) for n in ("dropout_p", "is_causal", "enable_gqa"))
    extras = [f"dropout {dropout}"] * bool(dropout) + ["causal"] * bool(causal) + ["grouped heads"] * bool(grouped)
    return ", ".join([f"{n} {t.shape} {t.dtype}" for n, t in zip(names, c.inputs)] + extras)


def _scores(c) -> int:
    """Bytes of the matrix of scores."""
    if len(c.inputs) < 2 or len(c.inputs[0].shape) < 2:
        return c.inputs[0].bytes if c.inputs else 0
    q, k = c.inputs[:2]
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.bytes // max(q.numel, 1))


def _saves(evidence, found) -> Interval | None:
    """The share of the step that the forward passes alone would save, from one of them."""
    c = found[0]
    if len(c.inputs) < 3 or evidence.config.step_s <= 0 or evidence.workload is None or _scores(c) > TIMED_BYTES:
        return None
    given = [torch.empty_strided(t.shape, t.strides, dtype=getattr(torch, t.dtype), device=evidence.config.device).normal_() for t in c.inputs[:3]]
    options = {"dropout_p": c.args.get("dropout_p", 0.0), "is_causal": bool(c.args.get("is_causal")), "scale": c.args.get("scale"),
               **({"enable_gqa": True} if c.args.get("enable_gqa") else {})}

    def run(backends, function):
        with torch.no_grad(), sdpa_kernel(backends):
            return function(*given, **options)
    if len(c.inputs) > 3:       # the mask's values are not known
        return None
    timed = evidence.alone(lambda: run([SDPBackend.MATH], F.scaled_dot_product_attention), lambda: run(EVERY, repaired(F.scaled_dot_product_attention)))
    if timed is None:
        return None
    seconds, _, change = timed
    part = len(found) * seconds / evidence.config.step_s
    return Interval(*(-part * math.expm1(x) for x in (change.point, change.high, change.low)))


# ---------------------------------------------------------------- the cure

def repaired(attention):
    """Attention that gives the fused backends what they take; the result is the same."""
    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        more, width = {"enable_gqa": True} if enable_gqa else {}, value.shape[-1]
        if query.dim() == 4 and query.shape[-1] == width and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
            return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        given, flat = [query, key, value], query.dim() == key.dim() == value.dim() == 3
        if flat:
            given = [t.unsqueeze(1) for t in given]
            attn_mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.dim() == 3 else attn_mask
        given = [t if t.stride(-1) == 1 else t.contiguous() for t in given]
        if query.device.type == "cpu" and width != query.shape[-1] and query.shape[-1] == key.shape[-1]:
            scale, wide = query.shape[-1] ** -0.5 if scale is None else scale, max(query.shape[-1], width)
            given = [F.pad(t, (0, wide - t.shape[-1])) for t in given]
        out = attention(*given, attn_mask, dropout_p, is_causal, scale=scale, **more)
        out = out[..., :width] if out.shape[-1] != width else out
        return out.squeeze(1) if flat else out
    return attend


@contextlib.contextmanager
def repairing():
    """F.scaled_dot_product_attention, repaired, while inside."""
    attention, F.scaled_dot_product_attention = F.scaled_dot_product_attention, repaired(F.scaled_dot_product_attention)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attention


def every_backend():
    """All backends switched on while inside."""
    return sdpa_kernel(EVERY)


def fix(workload):
    return add(workload, contexts=[every_backend, repairing])


def only_math():
    """Only the math backend while inside."""
    return sdpa_kernel(SDPBackend.MATH)


def plant(workload):
    return add(workload, contexts=[only_math])


def examples():
    """Grouped heads in float32 on a GPU (#181528), and the same in bfloat16."""
    def seen(dtype, backend, why):
        shapes = ((8, 32, 1024, 64), (8, 8, 1024, 64), (8, 8, 1024, 64))
        heads = [Tensor(s, dtype, (s[1] * s[2] * 64, s[2] * 64, 64, 1), "cuda") for s in shapes]
        args = {"dropout_p": 0.0, "is_causal": True, "scale": None, "enable_gqa": True, "backend": backend, "why_not": why}
        return Evidence(Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0", dtype=dtype), (),
                        (OpCall("scaled_dot_product_attention", tuple(heads), (heads[0],), args, module="blocks.0.attention"),))
    return seen("float32", "math", {"flash": "Expected query, key and value to all be of dtype: {Half, BFloat16}. Got Query dtype: float",
                                    "efficient": "For dense input, both fused kernels require query, key and value to have the same num_heads.",
                                    "cudnn": "cuDNN attention does not support float32"}), seen("bfloat16", "flash", {})
