"""bfloat16 or half on a processor that has no instructions for it.

## What it sees
On a CPU: matmuls and convolutions in bfloat16 without AVX-512 BF16, AMX or Arm BF16 among the processor's instruction sets, or in
half without AVX-512 FP16 or Arm's half-precision arithmetic; a tenth of the step's arithmetic or more. Where the instruction
sets are not known it is silent.

## Why it is slow
Every operand is widened to float32 before it is multiplied, and the result rounded back. Half falls off oneDNN altogether: its
convolutions run on PyTorch's own im2col kernels.

## Cure
float32; or bfloat16 autocast where the processor has that.

## Not for
Models that do not fit into memory otherwise. Steps that are bound by memory alone can gain from half the bytes: `fix` measures it.

## References
SLOW_PATHS, "A CPU is a real machine too" of issue 4; aten/src/ATen/native/mkldnn/Utils.h (mkldnn_bf16_device_check, mkldnn_fp16_device_check).
"""

from perfscope.measure import machine
from perfscope.evidence.precision import BFLOAT16_SETS, HALF_SETS, multiplied, multiplying
from perfscope.probe import Config, Evidence, Finding, OpCall, Place, Tensor, replace

USES = ("ops",)
DEVICES = ("cpu",)
CODE = "no torch.autocast, no model.half()      # or torch.autocast(\"cpu\", torch.bfloat16), where the processor has bfloat16"
ARITHMETIC = 0.1            # of the step's FLOPs
NEEDED = {"bfloat16": BFLOAT16_SETS, "float16": HALF_SETS}
LONGEST = 8                 # places that are named
HERE = set(machine.cpu()["instruction_sets"])
MISSING = [t for t, needed in NEEDED.items() if not HERE & needed]


def detect(evidence):
    c = evidence.config
    flops = multiplied(evidence)
    total = sum(flops.values())
    for dtype, needed in NEEDED.items():
        if not c.instruction_sets or set(c.instruction_sets) & needed or not total or flops.get(dtype, 0) / total < ARITHMETIC:
            continue
        calls = [o for o, t in multiplying(evidence) if t == dtype]
        names = dict.fromkeys(o.module or o.line or f"{o.phase} phase" for o in calls)
        asked = {o.module: evidence.backend("convolution_call", o) for o in calls if o.name == "convolution"}
        places = tuple(Place(n, f"{dtype}, {flops[dtype] / total:.0%} of the step's arithmetic" + (f", backend {asked[n]}" if asked.get(n) else ""))
                       for n in list(names)[:LONGEST])
        yield Finding("", f"{len(names)} layers multiply in {dtype}, for which this processor has no instructions", places, "compute in float32",
                      evidence={"dtype": dtype, "flops": flops[dtype], "all_flops": total, "instruction_sets": list(c.instruction_sets),
                                "needed": sorted(needed)})


def fix(workload):
    """float32, or bfloat16 autocast if half was asked for and this processor has bfloat16."""
    better = "float16" in MISSING and "bfloat16" not in MISSING and workload.dtype in ("half", "amp-half")
    return replace(workload, dtype="amp-bfloat16" if better else "float32", scaler=False)


if MISSING:                 # on a processor that has both, the disease cannot be had
    def plant(workload):
        return replace(workload, dtype="amp-half" if "float16" in MISSING else "amp-bfloat16", scaler=False)


def examples():
    """bfloat16 on a processor with AVX-512 alone, and on one with AVX-512 BF16."""
    def seen(*sets):
        x, w = Tensor((64, 256), "bfloat16", (256, 1)), Tensor((256, 128), "bfloat16", (1, 256))
        call = OpCall("mm", (x, w), (Tensor((64, 128), "bfloat16", (128, 1)),), module="head")
        return Evidence(Config("cpu", instruction_sets=("avx2", "avx512f", *sets), torch="2.13.0", dtype="amp-bfloat16"), ops=(call,))
    return seen(), seen("avx512_bf16")
