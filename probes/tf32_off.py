"""float32 matmuls or convolutions do not use TF32, although the GPU has it.

## What it sees
On an NVIDIA GPU of compute capability 8.0 or more: matmuls in float32 with torch.get_float32_matmul_precision() "highest" (the
default), or convolutions in float32 with torch.backends.cudnn.allow_tf32 False (on is the default), by PyTorch's newer switches
(fp32_precision) where they were used. They have to be a tenth of the step's arithmetic. In a trace: matmul kernels
of an Ampere or newer GPU without Tensor Cores (sgemm, simt, f32f32), one per cent of the kernels' time or more; convolution
kernels likewise, if none at all uses Tensor Cores.

## Why it is slow
TF32 rounds the factors to 10 bits of mantissa and multiplies on Tensor Cores, at about 8 times float32's rate on an A100. Sums
stay in float32.

## Cure
torch.set_float32_matmul_precision("high"), and torch.backends.cudnn.allow_tf32 = True where it was switched off.

## Not for
Computations that need float32's 23 bits: errors of a product grow to about 1e-3. Mixed precision (no_mixed_precision) gains more
where it is acceptable.

## References
SLOW_PATHS S18; PyTorch "CUDA semantics", "TensorFloat-32 (TF32) on Ampere (and later) devices"; NVIDIA A100 whitepaper.
"""

import re

from perfscope.evidence.precision import capability, multiplied, multiplying, tf32
from perfscope.probe import CONVOLUTIONS, Config, Evidence, Finding, OpCall, Place, Tensor, add, replace

USES = ("ops", "trace")
DEVICES = ("cuda",)
#: Planted on float32, which is the disease of another probe too; the example has to be float32 as well.
ALSO = ("no_mixed_precision",)
CODE = 'torch.set_float32_matmul_precision("high")     # torch.backends.cudnn.allow_tf32 = True, if it was switched off'
SINCE = (8, 0)              # Ampere
ARITHMETIC = 0.1            # of the step's FLOPs; at 8 times the rate, a tenth of the arithmetic saves at most 9 % of its time
SHARE = 0.01                # of the kernels' time in a trace: the smallest change that matters (METHOD 8)
WITHOUT = re.compile(r"sgemm|simt|scudnn|f32f32_f32f32", re.I)
MODERN = re.compile(r"ampere|sm(8\d|9\d|1\d\d)|cutlass_?[89]\d|cutlass3x|cutlass_simt", re.I)
OFF = ("ieee", "none")
SWITCHES = ("float32_matmul_precision", "matmul.allow_tf32", "matmul.fp32_precision", "cudnn.allow_tf32", "cudnn.conv.fp32_precision")


def matmul_off(switches) -> bool:
    """Whether matmuls are told to keep to float32; False if the switches do not say."""
    newer = switches.get("matmul.fp32_precision")
    return newer in OFF if newer is not None else switches.get("matmul.allow_tf32") is False


def convolution_off(switches) -> bool:
    newer = switches.get("cudnn.conv.fp32_precision")
    return newer in OFF if newer is not None else switches.get("cudnn.allow_tf32") is False


def detect(evidence):
    if capability(evidence) < SINCE:
        return
    if evidence.ops is not None:
        yield from _in_ops(evidence)
    elif evidence.trace is not None:
        yield from _in_trace(evidence.trace)


def _in_ops(evidence):
    s = evidence.config.switches
    matmuls, convolutions = matmul_off(s), convolution_off(s)
    seen = [o for o, dtype in multiplying(evidence) if dtype == "float32" and (convolutions if o.name in CONVOLUTIONS else matmuls)]
    flops, total = sum(o.flops for o in seen), sum(multiplied(evidence).values())
    if not seen or flops / total < ARITHMETIC:
        return
    places = tuple(Place(where, saw) for where, saw in dict.fromkeys(
        (o.module or o.line or f"{o.phase} phase", f"{o.name} of float32 {' x '.join(str(t.shape) for t in o.inputs[:3])}") for o in seen))
    which = " and ".join(w for w, n in (("matmuls", matmuls), ("convolutions", convolutions))
                         if n and any((o.name in CONVOLUTIONS) == (w == "convolutions") for o in seen))
    switches = {k: s.get(k) for k in SWITCHES}
    yield Finding("", f"float32 {which} run without TF32: {flops / total:.0%} of the step's arithmetic", places, "allow TF32",
                  share=evidence.time_share(*sorted({o.name for o in seen})), basis="ceiling" if evidence.trace is not None else "",
                  evidence={"flops": flops, "all_flops": total, "switches": switches})


def _in_trace(trace):
    heavy = [k for k in trace.kernels if k.category in ("matmul", "convolution")]
    plain = [k for k in heavy if not k.tensor_cores and WITHOUT.search(k.name) and MODERN.search(k.name)]
    convolves = lambda k: any("conv" in o.name for o in k.ops) or "scudnn" in k.name  # noqa: E731
    if any(k.tensor_cores and convolves(k) for k in heavy):         # convolutions may, and these few were better off without
        plain = [k for k in plain if not convolves(k)]
    share = sum(k.total_ns for k in plain) / trace.kernels_ns if trace.kernels_ns else 0.0
    if share < SHARE:
        return
    yield Finding("", "float32 matmuls or convolutions run without Tensor Cores", tuple(
        Place(", ".join(o.name for o in k.ops) or "kernel", f"{k.name}: {k.count} kernels, {k.total_ns / 1e6:.2f} ms") for k in plain), "allow TF32",
        share=share, basis="ceiling", evidence={"kernels": [k.name for k in plain]})


def fix(workload):
    return add(workload, contexts=[tf32])


def plant(workload):
    return add(replace(workload, dtype="float32"), contexts=[lambda: tf32(False)])


def examples():
    """A float32 linear layer on an H100, with the default switches and with TF32."""
    def seen(on):
        precision = {"float32_matmul_precision": "high" if on else "highest", "matmul.allow_tf32": on, "matmul.fp32_precision": "tf32" if on else "none",
                     "cudnn.allow_tf32": True, "cudnn.conv.fp32_precision": "tf32"}
        bias, x = Tensor((4096,), "float32", (1,), "cuda"), Tensor((512, 1024), "float32", (1024, 1), "cuda")
        w = Tensor((1024, 4096), "float32", (1, 1024), "cuda")
        call = OpCall("addmm", (bias, x, w), (Tensor((512, 4096), "float32", (4096, 1), "cuda"),), module="up")
        return Evidence(Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0", switches=precision), ops=(call,))
    return seen(False), seen(True)
