"""Asks PyTorch which backend it would pick, without running anything. Private functions, each guarded: None if they are gone.

Sources: torch/csrc and aten/src/ATen/native (Normalization.cpp, Convolution.cpp, transformers/attention.cpp); they ran on 2.13.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch

from perfscope.probe import setting


def batch_norm(x, weight, bias, running_mean, running_var, training: bool, eps: float) -> str | None:
    """"Native", "Cudnn" or "Miopen"."""
    return _name(torch._C._select_batch_norm_backend(x, weight, bias, running_mean, running_var, training, eps))


def convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups) -> str | None:
    """"Cudnn", "CudaDepthwise2d", "Mkldnn", "Slow2d", "SlowDilated3d", ..."""
    return _name(torch._C._select_conv_backend(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, None))


def convolution_call(call, onednn: bool | None = None) -> str | None:
    """`convolution` for a recorded call (perfscope.probe.OpCall "convolution"): asked with empty tensors of the same kind.
    `onednn`: the answer with torch.backends.mkldnn on or off."""
    x, weight, *bias = (torch.empty_strided(t.shape, t.strides, dtype=getattr(torch, t.dtype), device=t.device) for t in call.inputs)
    a = call.args
    with setting(torch.backends.mkldnn, enabled=onednn)() if onednn is not None else contextlib.nullcontext():
        return convolution(x, weight, bias[0] if bias else None, a["stride"], a["padding"], a["dilation"], a["transposed"], a["output_padding"],
                           a["groups"])


def convolution_layout(x, weight, backend=None) -> str | None:
    """"channels_last" or "contiguous": what a convolution converts both operands to."""
    chosen = torch._C._conv_determine_backend_memory_format(x, weight, backend or torch._C._ConvBackend.Cudnn)
    return {torch.channels_last: "channels_last", torch.contiguous_format: "contiguous", torch.channels_last_3d: "channels_last"}.get(chosen)


def attention(q, k, v, mask=None, dropout=0.0, causal=False, **options) -> str | None:
    """"math", "flash", "efficient", "cudnn" or "overrideable": what scaled_dot_product_attention would use."""
    choice = int(torch._fused_sdp_choice(q, k, v, mask, dropout, causal, **options))
    return {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}.get(choice)


ATTENTION = ("flash", "efficient", "cudnn")
_SWITCH = {"flash": "flash_sdp_enabled", "efficient": "mem_efficient_sdp_enabled", "cudnn": "cudnn_sdp_enabled"}


def why_not(q, k, v, mask=None, dropout=0.0, causal=False, gqa=False) -> dict[str, str]:
    """Why each fused backend of attention cannot take these tensors, in PyTorch's own words ("switched off" if that is all); those that
    can are left out. Where it does not say (on a CPU), what its rules in sdp_utils_cpp.cpp are, tried on torch 2.13."""
    why, cuda = {}, torch.backends.cuda
    for name in ATTENTION:
        if not getattr(cuda, _SWITCH[name], lambda: True)():
            why[name] = "switched off"
        elif q.device.type == "cuda":
            try:
                able, said = _can_use(name, cuda.SDPAParams(q, k, v, mask, dropout, causal, gqa))
            except (AttributeError, TypeError, RuntimeError):
                continue
            why |= {} if able else {name: said or "PyTorch does not say"}
        elif name == "flash":
            said = _why_not_on_cpu(q, k, v, mask, dropout)
            why |= {name: said} if said else {}
    return why


def _can_use(name: str, params) -> tuple[bool, str]:
    """(whether it can, PyTorch's warnings about why not, without their repetition of the source line)."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        able = getattr(torch.backends.cuda, f"can_use_{name}_attention")(params, True)
    return able, " ".join(dict.fromkeys(str(w.message).partition(" (Triggered internally")[0] for w in seen))


def _why_not_on_cpu(q, k, v, mask, dropout) -> str:
    reasons = {"dropout is not 0": dropout > 0, "the mask requires a gradient": mask is not None and mask.requires_grad,
               "query, key and value have to have 4 dimensions": any(t.dim() != 4 for t in (q, k, v)),
               f"the heads of query, key and value have different widths: {q.shape[-1]}, {k.shape[-1]}, {v.shape[-1]}":
                   not q.shape[-1] == k.shape[-1] == v.shape[-1],
               "the last dimension of query, key or value is not contiguous": any(t.stride(-1) != 1 for t in (q, k, v))}
    return "; ".join(text for text, true in reasons.items() if true)


def _name(value: Any) -> str:
    return str(value).rpartition(".")[2]


QUESTIONS = {"batch_norm": batch_norm, "convolution": convolution, "convolution_call": convolution_call,
             "convolution_layout": convolution_layout, "attention": attention}


def ask(question: str, *args, **kwargs) -> str | None:
    """The answer to one of QUESTIONS; None if this PyTorch does not answer."""
    try:
        return QUESTIONS[question](*args, **kwargs)
    except (AttributeError, TypeError, RuntimeError, NotImplementedError):
        return None
