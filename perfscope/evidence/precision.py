"""What probes of precision share: in which types a step multiplies, what the hardware multiplies fast, types in a trace, TF32.

    multiplied(evidence)            # {"float32": FLOPs, "bfloat16": FLOPs} of a step's matmuls and convolutions
    fast_types(evidence)            # ("bfloat16",): what this processor or GPU multiplies at more than float32's rate
    with tf32(): ...                # TF32 for matmuls and convolutions, and all as it was behind it

Imported by probes as part of the probe interface.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import Iterator

import msgspec

from perfscope.probe import Evidence, OpCall

FLOATS = ("float16", "bfloat16", "float32", "float64")      # lowest first
BFLOAT16_SETS = {"avx512_bf16", "amx_bf16", "bf16"}         # x86: VDPBF16PS, AMX tiles; Arm: BFMMLA
HALF_SETS = {"avx512_fp16", "amx_fp16", "asimdhp"}
#: Compute capability by the names in traces, whose Config says nothing (developer.nvidia.com/cuda-gpus)
CAPABILITIES = (("V100|Titan V", (7, 0)), ("T4|RTX 20|Quadro RTX", (7, 5)), ("A100|A30", (8, 0)), ("A10|A16|A40|A2|RTX A|RTX 30", (8, 6)),
                ("L4|L40|RTX 40|RTX .*Ada", (8, 9)), ("H100|H200|H800|H20|GH200", (9, 0)), ("B100|B200|GB200", (10, 0)), ("RTX 50", (12, 0)))
MATMUL_OPS = ("mm", "addmm", "bmm", "baddbmm")
CONVOLUTION_OPS = ("convolution", "convolution_backward", "cudnn_convolution", "cudnn_convolution_transpose", "cudnn_convolution_backward",
                   "cudnn_convolution_backward_input", "cudnn_convolution_backward_weight", "cudnn_convolution_add_relu", "mkldnn_convolution",
                   "miopen_convolution", "miopen_depthwise_convolution", "_slow_conv2d_forward", "_slow_conv2d_backward")
# what kernel names say of the type that is multiplied: ATen and cuDNN templates, cuBLAS, CUTLASS, rocBLAS/hipBLASLt (Cijk_..._HHS_)
LOW_KERNEL = re.compile(r"half|bf16|bfloat|[^t]f16|h884|hmma|hgemm|16816|gmma_bf|e4m3|e5m2|fp8|nvjet_[htq]|_(HHS|HSS|BBS|BSS|HB|BB)_|_HH_|f8f8", re.I)
FLOAT32_KERNEL = re.compile(r"sgemm|scudnn|tf32|simt_s|f32f32_f32f32|1688gemm|<float, (int|float)|engine<float|(?<![a-z])float, *float|_SB_|_SS_BH", re.I)


def multiplying(evidence: Evidence) -> Iterator[tuple[OpCall, str]]:
    """The step's matmuls and convolutions, each with the lowest floating type among its tensors: the one that it multiplies in."""
    for o in evidence.ops or ():
        types = [t.dtype for t in o.inputs if t.dtype in FLOATS] if o.flops else []
        if types:
            yield o, min(types, key=FLOATS.index)


def multiplied(evidence: Evidence) -> dict[str, int]:
    """Floating type -> FLOPs of the step's matmuls and convolutions."""
    out: dict[str, int] = {}
    for o, dtype in multiplying(evidence):
        out[dtype] = out.get(dtype, 0) + o.flops
    return out


def capability(evidence: Evidence) -> tuple[int, int]:
    """Of the GPU: what Config says, or what the GPU's name in the trace says; (0, 0) if neither is known, or the GPU is AMD's."""
    c = evidence.config
    names = [c.device_name, *(evidence.trace.devices.values() if evidence.trace is not None else ())]
    if any(re.search("AMD|Instinct|Radeon|MI\\d{3}", n) for n in names):
        return (0, 0)
    if c.capability != (0, 0):
        return tuple(c.capability)
    return next((version for pattern, version in CAPABILITIES for n in names if re.search(rf"\b(?:{pattern})", n)), (0, 0))


def fast_types(evidence: Evidence) -> tuple[str, ...]:
    """"bfloat16" and "float16", the better choice first, as far as this hardware multiplies them faster than float32."""
    c = evidence.config
    if c.device == "cpu":
        sets = set(c.instruction_sets)
        return tuple(t for t, needed in (("bfloat16", BFLOAT16_SETS), ("float16", HALF_SETS)) if sets & needed)
    version = capability(evidence)
    return ("bfloat16", "float16") if version >= (8, 0) else ("float16",) if version >= (7, 0) else ()


def tensors_of(row) -> list[tuple[list, str]]:
    """(shape, type as the profiler writes it) of the tensors among the inputs of an operator in a trace (tables.OpRow)."""
    with suppress(msgspec.MsgspecError, ValueError, TypeError):
        shapes, types = msgspec.json.decode(row.shapes or "[]"), msgspec.json.decode(row.dtypes or "[]")
        return [(s, t) for s, t in zip(shapes, types) if isinstance(s, list) and t not in ("", "Scalar", "ScalarList", "GenericList", "TensorList")]
    return []


@contextmanager
def tf32(on: bool = True):
    """TF32 for float32 matmuls and convolutions on CUDA, or none of it; behind it every switch is what it was.

    The legacy switches are set where they can be read, because code that reads them (torch.compile does) fails once the newer
    fp32_precision says something else; where a user has set the newer ones, those are set.
    """
    import torch
    cudnn = torch.backends.cudnn
    newer = [o for o in (torch.backends.cuda.matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)) if hasattr(o, "fp32_precision")]
    onednn = [o for o in (getattr(torch.backends.mkldnn, "matmul", None),) if hasattr(o, "fp32_precision")]     # the legacy switch sets it too
    kept = [(o, o.fp32_precision) for o in (*newer, *onednn)]
    legacy = []
    try:
        with suppress(RuntimeError):
            legacy.append((torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
        with suppress(RuntimeError):
            legacy.append((lambda value: setattr(cudnn, "allow_tf32", value), cudnn.allow_tf32))
        if len(legacy) == 2:
            torch.set_float32_matmul_precision("high" if on else "highest")
            cudnn.allow_tf32 = on
        else:
            for o in newer:
                o.fp32_precision = "tf32" if on else "ieee"
        yield
    finally:
        if len(legacy) == 2:
            for put, value in legacy:
                put(value)
        for o, value in kept:
            o.fp32_precision = value
