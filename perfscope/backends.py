"""Asks PyTorch which backend it would pick, without running anything. Private functions, each guarded: None if they are gone.

Sources: torch/csrc and aten/src/ATen/native (Normalization.cpp, Convolution.cpp, transformers/attention.cpp); they ran on 2.13.
"""

from __future__ import annotations

from typing import Any

import torch


def batch_norm(x, weight, bias, running_mean, running_var, training: bool, eps: float) -> str | None:
    """"Native", "Cudnn" or "Miopen"."""
    return _name(torch._C._select_batch_norm_backend(x, weight, bias, running_mean, running_var, training, eps))


def convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups) -> str | None:
    """"Cudnn", "CudaDepthwise2d", "Mkldnn", "Slow2d", "SlowDilated3d", ..."""
    return _name(torch._C._select_conv_backend(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, None))


def convolution_layout(x, weight, backend=None) -> str | None:
    """"channels_last" or "contiguous": what a convolution converts both operands to."""
    chosen = torch._C._conv_determine_backend_memory_format(x, weight, backend or torch._C._ConvBackend.Cudnn)
    return {torch.channels_last: "channels_last", torch.contiguous_format: "contiguous", torch.channels_last_3d: "channels_last"}.get(chosen)


def attention(q, k, v, mask=None, dropout=0.0, causal=False, **options) -> str | None:
    """"math", "flash", "efficient", "cudnn" or "overrideable": what scaled_dot_product_attention would use."""
    choice = int(torch._fused_sdp_choice(q, k, v, mask, dropout, causal, **options))
    return {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}.get(choice)


def _name(value: Any) -> str:
    return str(value).rpartition(".")[2]


QUESTIONS = {"batch_norm": batch_norm, "convolution": convolution, "convolution_layout": convolution_layout, "attention": attention}


def ask(question: str, *args, **kwargs) -> str | None:
    """The answer to one of QUESTIONS; None if this PyTorch does not answer."""
    try:
        return QUESTIONS[question](*args, **kwargs)
    except (AttributeError, TypeError, RuntimeError, NotImplementedError):
        return None
