"""Batch norm runs on PyTorch's own kernels for a reason other than its precision.

## What it sees
Batch norms on a GPU that cuDNN does not get, each with the rule that decided it: no weights (affine=False), an input of two dimensions
(N, C), one running statistic missing, more samples than cuDNN takes (880 801 in training, 65 535 in evaluation), 2^31 - 1
elements or more, `torch.backends.cudnn.enabled = False`; and norms in evaluation mode (frozen) whose backward pass is wanted. In a
trace, ATen's batch norm kernels on float32. One finding per reason. eps is no reason: cuDNN takes any since its version 7.5.

## Why it is slow
The native kernels are the general ones, written for any layout and type. cuDNN only computes the backward pass of training mode, so a
frozen norm falls back however it is made.

## Cure
affine=False: frozen weights of 1 and biases of 0, the same result. (N, C): a third dimension around the norm. cuDNN switched off:
switch it on. For frozen norms there is none here: fold them into the convolution, or into one multiplication and one
addition.

## Not for
Too many samples or elements: only a smaller batch helps. Native kernels are sometimes as fast, so each cure is timed.

## References
SLOW_PATHS S03 and its table of backends; aten/src/ATen/native/Normalization.cpp; pytorch/pytorch#32763 (sizes).
"""

from perfscope.evidence import layers, norms
from perfscope.probe import Config, Evidence, Finding, ModuleCall, Tensor, add, setting

USES = ("model", "trace")
DEVICES = ("cuda",)
CODE = """torch.backends.cudnn.enabled = True
nn.BatchNorm2d(c)                                   # not affine=False: freeze weight and bias with requires_grad_(False)
norm(x.unsqueeze(-1)).squeeze(-1)                   # for (N, C)"""
CURE = {"no weights": "give the norms weights of 1 and biases of 0 that are not trained", "2-d": "give the norms a third dimension of size 1",
        "switched off": "switch cuDNN on"}
OTHERS = {"statistics": "keep both running statistics, or neither", "too many samples": "a smaller batch", "too large": "a smaller batch",
          "evaluation": "fold the frozen norm into its convolution, or write it as x * scale + shift"}
PRECISION = {"bfloat16", "half weights"}        # are other probes' business


def detect(evidence):
    if evidence.modules is None:
        yield from _in_trace(evidence)
        return
    seen = norms.batch_norms(evidence)
    share = evidence.time_share("native_batch_norm", "native_batch_norm_backward")
    reasons = {}
    for n in seen:
        others = [w for w in n.why if w not in PRECISION]
        if others and "bfloat16" not in n.why and (n.backend == "Native" or "evaluation" in others):
            reasons.setdefault(next((w for w in others if w in CURE), others[0]), []).append(n)
    for reason, ill in reasons.items():
        saves = layers.saved(evidence, [n.call for n in ill], CHANGE[reason]) if reason in CHANGE else None
        yield Finding("", f"{len(ill)} of {len(seen)} batch norms are not run by cuDNN: {norms.BROKEN[reason]}", tuple(n.place for n in ill),
                      CURE.get(reason) or OTHERS[reason], share=share, basis="ceiling" if share is not None else "", saves=saves,
                      evidence={"reason": reason, "norms": len(ill), "of": len(seen)}, extra={} if reason in CURE else {"hint": True})


def _in_trace(evidence):
    native = norms.native_norms(evidence.trace, lambda given, weights: given in ("float", "Half") and weights in ("float", None))
    if native and any("collect_statistics" in r.name for r in native.rows) and any("backward" in r.name for r in native.rows):
        places = layers.op_places(evidence.trace, "native_batch_norm")
        yield Finding("", f"batch norms in float32 are not run by cuDNN: {native.said}; which rule decided that is not recorded",
                      (*layers.kernel_places(native), *places), "see which reason holds: affine=False, an (N, C) input, cuDNN switched off, its sizes",
                      share=native.share, basis="ceiling", evidence=native.figures)


def with_weights(model):
    """Batch norms without weights get frozen ones, of 1 and 0."""
    import torch
    for m in model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.weight is None:
            where = next((t.device for t in model.parameters()), None)
            m.weight = torch.nn.Parameter(torch.ones(m.num_features, device=where), requires_grad=False)
            m.bias = torch.nn.Parameter(torch.zeros(m.num_features, device=where), requires_grad=False)


def three_dimensions(model):
    """BatchNorm1d gets (N, C) as (N, C, 1)."""
    import torch

    def deeper(module, args):
        return (args[0].unsqueeze(-1), *args[1:]) if args[0].dim() == 2 else None

    def back(module, args, output):
        return output.squeeze(-1) if output.dim() == 3 and output.shape[-1] == 1 else None
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm1d):
            m.register_forward_pre_hook(deeper)
            m.register_forward_hook(back)


def switched(on):
    """A context with cuDNN on or off."""
    import torch
    return setting(torch.backends.cudnn, enabled=on)


CHANGE = {"no weights": lambda norm, x: (with_weights(norm) or norm, x), "2-d": lambda norm, x: (norm, x.unsqueeze(-1))}


def fix(workload):
    return add(workload, on_model=[with_weights, three_dimensions], contexts=[switched(True)])


def plant(workload):
    return add(workload, contexts=[switched(False)])


def examples():
    def norm(affine):
        x = Tensor((256, 64, 32, 32), "float32", (65536, 1, 2048, 64), "cuda", requires_grad=True)
        vector = Tensor((64,), "float32", (1,), "cuda")
        names = ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")
        call = ModuleCall("layer1.norm", "BatchNorm2d", (x,), (x,), {n: vector for n in names}, args={"affine": affine})
        return Evidence(Config("cuda", "NVIDIA H100", (9, 0), torch="2.13.0", memory_format="channels_last", switches={"cudnn.enabled": True}),
                        modules=(call,))
    return norm(False), norm(True)
