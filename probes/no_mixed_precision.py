"""Matmuls and convolutions run in float32, although the hardware multiplies half or bfloat16 several times faster.

## What it sees
At least half of the arithmetic of matmuls and convolutions is float32, on a processor with bfloat16 instructions (AVX-512 BF16, AMX,
Arm BF16) or an NVIDIA GPU with Tensor Cores (capability 7.0 or more); and it is a substantial part: a fifth of the step's time where
a trace tells, otherwise at least one FLOP per byte that all operators touch; four of them are enough on a CPU. In a GPU trace
alone: kernel names that say float32 for four fifths of the time of matmuls and convolutions, and low precision for none.

## Why it is slow
bfloat16 and half take half the bytes, and their products run on units that do two (AVX-512) to sixteen times (Tensor Cores) as many.

## Cure
torch.autocast with bfloat16; with float16 and a GradScaler on GPUs of capability 7.x, which have no bfloat16 units. Weights,
sums and losses stay float32.

## Not for
Networks that are mostly elementwise or bound by launching. Losses that need float32's mantissa in the products: `fix` checks
gradients and a loss curve.

## References
SLOW_PATHS S19; PyTorch "Automatic Mixed Precision package"; Micikevicius 2018, "Mixed Precision Training".
"""

from perfscope import patch
from perfscope.evidence.precision import (
    CONVOLUTION_OPS,
    FLOAT32_KERNEL,
    LOW_KERNEL,
    MATMUL_OPS,
    capability,
    fast_types,
    multiplied,
    multiplying,
)
from perfscope.probe import Finding, Place, replace

USES = ("ops", "trace")
CODE = """with torch.autocast("DEVICE", torch.bfloat16):       # around forward pass and loss only
    loss = criterion(model(images), target)"""
MOSTLY = 0.5                # of the arithmetic
SHARE = 0.2                 # of the step: at twice the rate that saves a tenth of it. SLOW_PATHS S19 says 0.3, but activations halve as well
INTENSITY = 1.0             # FLOP per byte; an embedding with a small head has 0.00
CLEAR = 4.0                 # FLOP per byte that are enough on a CPU, whose traces of two short steps mislead on a busy machine. Shares of the time
#                             measured at batch 8 on 2 cores: 0.44 at 4.4 (perfscope.contract), 0.81 at 8.4 (vit), 0.83 at 24 (resnet9)
TRACE_FLOAT, TRACE_LOW = 0.8, 0.01      # of the time; 0.92 to 1.00 and 0.00 in the float32 traces of data/README.md, 0.00 and 0.94 in the FP8 one
LONGEST = 8                 # places that are named


def detect(evidence):
    fast = fast_types(evidence)
    if not fast:
        return
    if evidence.ops is not None:
        yield from _in_ops(evidence, fast)
    elif evidence.trace is not None and evidence.trace.device_events:
        yield from _in_trace(evidence, fast)


def _in_ops(evidence, fast):
    flops = multiplied(evidence)
    plain, total = flops.get("float32", 0), sum(flops.values())
    if not total or plain / total < MOSTLY:
        return
    moved = sum(t.bytes for o in evidence.ops for t in (*o.inputs, *o.outputs))
    share = evidence.time_share(*CONVOLUTION_OPS, *MATMUL_OPS)
    c = evidence.config
    clear = c.device == "cpu" and plain / moved >= CLEAR
    if not clear and (share < SHARE if share is not None else plain / moved < INTENSITY):
        return
    work: dict[str, int] = {}
    for o, dtype in multiplying(evidence):
        if dtype == "float32" and o.phase in ("forward", "loss"):
            work[o.module or o.line or o.phase] = work.get(o.module or o.line or o.phase, 0) + o.flops
    largest = sorted(work, key=work.get, reverse=True)
    places = tuple(Place(m, f"{work[m] / 1e6:.1f} MFLOP forward in float32") for m in largest[:LONGEST])
    has = ", ".join(s for s in c.instruction_sets if "bf16" in s or "fp16" in s) if c.device == "cpu" else f"capability {capability(evidence)}"
    yield Finding("", f"{len(work)} layers multiply in float32; this {'processor' if c.device == 'cpu' else 'GPU'} ({has}) is faster in {fast[0]}", places,
                  f"autocast to {fast[0]}" + (", with a GradScaler" if fast[0] == "float16" else ""), share=share, basis="" if share is None else "ceiling",
                  evidence={"float32_flops": plain, "flops": total, "bytes": moved, "hardware": has, "fast": list(fast)})


def _in_trace(evidence, fast):
    trace = evidence.trace
    heavy = [k for k in trace.kernels if k.category in ("matmul", "convolution", "attention")]
    total = sum(k.total_ns for k in heavy)
    low = sum(k.total_ns for k in heavy if LOW_KERNEL.search(k.name))
    plain = [k for k in heavy if FLOAT32_KERNEL.search(k.name) and not LOW_KERNEL.search(k.name)]
    took = sum(k.total_ns for k in plain)
    if not trace.kernels_ns or total / trace.kernels_ns < SHARE or took / total < TRACE_FLOAT or low / total > TRACE_LOW:
        return
    places = tuple(Place(", ".join(o.name for o in k.ops) or "kernel", f"{k.name}: {k.count} kernels, {k.total_ns / 1e6:.2f} ms") for k in plain[:LONGEST])
    name = next(iter(trace.devices.values()), evidence.config.device_name)
    yield Finding("", f"matmuls and convolutions run in float32 or TF32; {name} is faster in {fast[0]}", places,
                  f"autocast to {fast[0]}" + (", with a GradScaler" if fast[0] == "float16" else ""), share=took / trace.kernels_ns, basis="ceiling",
                  evidence={"kernels": len(plain), "total_ns": took, "heavy_ns": total, "capability": list(capability(evidence)), "fast": list(fast)})


def fix(workload):
    """bfloat16, or half on a GPU that has no bfloat16 units: the machine that the cure runs on is asked."""
    import torch
    old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
    return replace(workload, dtype="amp-half" if old else "amp-bfloat16")


def edit(source):
    return patch.around_forward(source, f'torch.autocast("{source.device}", torch.bfloat16)')


def plant(workload):
    return replace(workload, dtype="float32")
