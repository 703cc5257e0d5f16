"""Batch norm in bfloat16 is never run by cuDNN: PyTorch's own kernels do it.

## What it sees
Batch norms on a GPU with a bfloat16 input or bfloat16 weights, autocast or not. In a trace, ATen's kernels
`batch_norm_collect_statistics`, `batch_norm_transform_input` and `batch_norm_backward` on `c10::BFloat16`, NVIDIA's or AMD's, with
their launches and their share.

## Why it is slow
PyTorch's rule for cuDNN's batch norm leaves bfloat16 out, whatever the weights. The native kernels read the tensor once more, and
with contiguous (NCHW) tensors each channel is gathered from far apart. On an MI300X they were 30.8 % of the kernel time outside
communication in a ResNet (the trace of data/README.md). Whether they are slower than the alternatives depends on GPU and shape.

## Cure
There are four candidates, and none is right everywhere: all are timed.
channels_last: the native kernels have a version for it. half: autocast to float16 with a GradScaler, so that cuDNN takes the
norms. float32_norms: the norms alone compute in float32, at twice the bytes. compile: Inductor fuses norm, ReLU and addition.

## Not for
half: models whose gradients overflow float16. float32_norms: steps that are limited by memory.

## References
SLOW_PATHS S02; aten/src/ATen/native/Normalization.cpp; no public measurement of the candidates is known.
"""

from perfscope.evidence import layers, norms
from perfscope.probe import Config, Evidence, Finding, ModuleCall, Tensor, add, replace

USES = ("model", "trace")
DEVICES = ("cuda",)
COSTLY = ("compile",)
CODE = """# one of these, whichever is fastest on your GPU:
model = model.to(memory_format=torch.channels_last)          # and the images
with torch.autocast("cuda", torch.float16): ...              # with torch.amp.GradScaler
model = torch.compile(model)                                 # fuses norm, ReLU and addition"""
TEXT = "batch norms in bfloat16 run on PyTorch's native kernels"
CURE = "time the candidates: channels_last, float16 autocast, norms in float32, torch.compile"


def detect(evidence):
    native = norms.native_norms(evidence.trace, lambda given, weights: given == "BFloat16")
    if evidence.modules is None:
        if native:
            yield Finding("", f"{TEXT}: {native.said}", (*layers.kernel_places(native), *layers.op_places(evidence.trace, "native_batch_norm")), CURE,
                          share=native.share, basis="ceiling", evidence=native.figures)
        return
    seen = norms.batch_norms(evidence)
    ill = [n for n in seen if "bfloat16" in n.why and n.backend == "Native"]
    if not ill:
        return
    share = evidence.time_share("native_batch_norm", "native_batch_norm_backward")
    alone = {name: layers.saved(evidence, [n.call for n in ill], change) for name, change in ALONE.items()}
    best = max((i for i in alone.values() if i is not None), key=lambda i: i.point, default=None)
    slower = best is not None and best.high < 0
    yield Finding("", f"{len(ill)} of {len(seen)} {TEXT}", tuple(n.place for n in ill), CURE, share=share, basis="ceiling" if share is not None else "",
                  saves=best, note="on the norms alone, neither channels_last nor float32 is faster here" if slower else "",
                  evidence={"norms": len(ill), "of": len(seen), "bytes": sum(n.input.bytes for n in ill),
                            "alone": {name: [i.point, i.low, i.high] for name, i in alone.items() if i is not None},
                            **({"trace": native.figures} if native else {})})


def _channels_last(norm, x):
    import torch
    return norm, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _float32(norm, x):
    float32_norms(norm)
    return norm, x


ALONE = {"channels_last": _channels_last, "float32_norms": _float32}


def float32_norms(model):
    """Every batch norm computes in float32, and gives back the dtype that it was given."""
    import torch

    def wide(module, args):
        module.given = args[0].dtype
        return (args[0].float(), *args[1:])

    def back(module, args, output):
        return output.to(module.given)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.float()
            module.register_forward_pre_hook(wide)
            module.register_forward_hook(back)


CURES = {
    "channels_last": lambda workload: replace(workload, memory_format="channels_last"),
    "half": lambda workload: replace(workload, dtype="amp-half", scaler=True),
    "float32_norms": lambda workload: add(workload, on_model=[float32_norms]),
    "compile": lambda workload: replace(workload, compile="default"),
}


def plant(workload):
    return replace(workload, dtype="amp-bfloat16")


def examples():
    def norm_in(dtype):
        x = Tensor((512, 64, 32, 32), dtype, (65536, 1, 2048, 64), "cuda", requires_grad=True)
        vector = Tensor((64,), "float32", (1,), "cuda", requires_grad=True)
        norm = ModuleCall("layer1.norm", "BatchNorm2d", (x,), (x,), {n: vector for n in ("weight", "bias", "running_mean", "running_var")})
        return Evidence(Config("cuda", "NVIDIA H100", (9, 0), torch="2.13.0", dtype="amp-bfloat16", memory_format="channels_last"), modules=(norm,))
    return norm_in("bfloat16"), norm_in("float16")
