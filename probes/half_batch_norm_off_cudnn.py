"""Batch norm in half precision with half weights runs on PyTorch's own kernels instead of cuDNN's.

## What it sees
Batch norms on a GPU whose input and whose weights are both float16, and nothing else that keeps them from cuDNN: the operator
that ran (`native_batch_norm` instead of `cudnn_batch_norm`), else PyTorch's own answer, else its rules. In a trace, ATen's
kernels `batch_norm_collect_statistics`, `batch_norm_transform_input` and `batch_norm_backward` with `c10::Half` for both.

## Why it is slow
`model.half()` makes the norms' weights and running statistics half too, and cuDNN wants them in float32, so PyTorch falls back
to its native kernels. In 2018 that was most of the cost of a ResNet-18 step on a V100: 256 s of training became 186 s without it.

## Cure
Keep weights and statistics of the norms in float32; activations stay half, so nothing else changes. The statistics are then
also more precise.

## Not for
bfloat16: cuDNN's batch norm is never used for it (see bfloat16_batch_norm). Native is not always slower: one shape was measured at
64.93 (native) against 68.90 (cuDNN) in its backward pass, so this is a lead until it has been timed.

## References
SLOW_PATHS S01; aten/src/ATen/native/Normalization.cpp; Myrtle, "How to train your ResNet" part 3; pytorch/pytorch#58240.
"""

from perfscope.evidence import layers, norms
from perfscope.probe import Config, Evidence, Finding, ModuleCall, Tensor, add, replace

USES = ("model", "trace")
DEVICES = ("cuda",)
CODE = """model.half()
for m in model.modules():
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
        m.float()           # weights and statistics; activations stay half"""
TEXT = "batch norms in half precision with half weights run on PyTorch's native kernels, not cuDNN's"
CURE = "keep the norms' weights and statistics in float32"


def detect(evidence):
    sure = norms.native_norms(evidence.trace, lambda given, weights: (given, weights) == ("Half", "Half"))
    native = sure and norms.native_norms(evidence.trace, lambda given, weights: given == "Half" and weights in ("Half", None))
    if evidence.modules is None:
        if native:
            yield Finding("", f"{TEXT}: {native.said}", tuple(layers.kernel_places(native)), CURE, share=native.share, basis="ceiling",
                          evidence=native.figures)
        return
    seen = norms.batch_norms(evidence)
    ill = [n for n in seen if n.why == ("half weights",) and n.backend == "Native"]
    if not ill:
        return
    share = evidence.time_share("native_batch_norm", "native_batch_norm_backward")
    yield Finding("", f"{len(ill)} of {len(seen)} {TEXT}", tuple(n.place for n in ill), CURE, share=share, basis="ceiling" if share is not None else "",
                  saves=layers.saved(evidence, [n.call for n in ill], lambda norm, x: (norm.float(), x)),
                  evidence={"norms": len(ill), "of": len(seen), "bytes": sum(n.input.bytes for n in ill), **({"trace": native.figures} if native else {})})


def float32_weights(model):
    """Weights and running statistics of every batch norm in float32."""
    import torch
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.float()


def fix(workload):
    return add(workload, on_model=[float32_weights])


def plant(workload):
    return replace(workload, dtype="half")


def examples():
    def with_weights(dtype):
        x = Tensor((512, 64, 32, 32), "float16", (65536, 1, 2048, 64), "cuda", requires_grad=True)
        vector = Tensor((64,), dtype, (1,), "cuda", requires_grad=True)
        norm = ModuleCall("layer1.norm", "BatchNorm2d", (x,), (x,), {n: vector for n in ("weight", "bias", "running_mean", "running_var")})
        return Evidence(Config("cuda", "NVIDIA H100", (9, 0), torch="2.13.0", dtype="half", memory_format="channels_last"), modules=(norm,))
    return with_weights("float16"), with_weights("float32")
