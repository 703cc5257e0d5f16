"""Which backend a batch norm takes on a GPU and why, from a recorded call, from PyTorch's own answer, or from a trace's kernels.

    for norm in batch_norms(evidence): norm.backend, norm.why        # "Native", ("half weights",)

Imported by probes as part of the probe interface.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable

import torch

from perfscope.finding import Place
from perfscope.evidence.layers import Kernels, kernels
from perfscope.probe import Evidence, ModuleCall, Tensor

# Batch norm goes to cuDNN only if none of these is broken (SLOW_PATHS, read in torch 2.11 to 2.15). The smallest eps that cuDNN
# takes is 0 since its version 7.5, so eps decides nothing.
LARGEST_TRAINING, LARGEST_EVALUATION = 880_801, 65_535      # samples (aten/src/ATen/native/Normalization.cpp; pytorch/pytorch#32763)
LARGEST_TENSOR = 2**31 - 1
BROKEN = {
    "bfloat16": "cuDNN's batch norm is not used for bfloat16",
    "half weights": "a half input needs float32 weights",
    "no weights": "it has no weight and bias (affine=False)",
    "statistics": "one of the running statistics is missing, or both in evaluation mode",
    "2-d": "its input is (N, C): cuDNN is used from 3 dimensions on",
    "too many samples": f"more than {LARGEST_TRAINING} samples in training, {LARGEST_EVALUATION} in evaluation mode",
    "too large": "its input has 2^31 - 1 elements or more",
    "switched off": "torch.backends.cudnn.enabled is False",
    "evaluation": "it is in evaluation mode (frozen) and differentiated: the backward pass is native",
}
RAN = {"native_batch_norm": "Native", "_native_batch_norm_legit": "Native", "_native_batch_norm_legit_no_training": "Native",
       "cudnn_batch_norm": "Cudnn", "miopen_batch_norm": "Miopen"}
SYNCHRONISED = {"aten::batch_norm_stats", "aten::batch_norm_elemt", "aten::batch_norm_backward_reduce", "aten::batch_norm_backward_elemt",
                "aten::batch_norm_gather_stats_with_counts"}       # what SyncBatchNorm launches: it never uses cuDNN, by design
#: ATen's own batch norm kernels, by what their templates say: <Var or InvStd, input, weights, ...>; channels_last ones name the
#: type they add in (float) second and the weights' third
NATIVE_NORM = re.compile(r"at::native::(?:\w+::|\(anonymous namespace\)::)*batch_norm_\w+<(?:at::native::(?:Var|InvStd), )?(?P<input>[\w:]+), "
                         r"(?P<second>[\w:]+)(?:, (?P<third>[\w:]+))?")
NORMS = tuple(f"BatchNorm{d}d" for d in (1, 2, 3))


@dataclass(frozen=True)
class BatchNorm:
    """A call of a batch norm on a GPU: its backend, how that is known ("ran", "PyTorch says", "by PyTorch's rules"), and the keys
    of BROKEN that keep it from cuDNN."""

    call: ModuleCall
    backend: str
    known: str
    why: tuple[str, ...] = ()

    @property
    def input(self) -> Tensor:
        return self.call.inputs[0]

    @property
    def place(self) -> Place:
        """Module path; kind, shape, dtypes, layout, backend, and the condition that decided it."""
        x, weight = self.input, self.call.parameters.get("weight")
        weights = f"weights {weight.dtype}" if weight is not None else "no weights"
        layout = f", {x.layout}" if x.layout else ""
        because = "".join(f", {BROKEN[w]}" for w in self.why)
        return Place(self.call.path, f"{self.call.kind} {x.shape} {x.dtype}{layout}, {weights}: {self.backend} ({self.known}){because}")


def is_batch_norm(call: ModuleCall) -> bool:
    """Whether it is a BatchNorm1d, 2d or 3d, or of a class derived from them. SyncBatchNorm is not: it has no choice."""
    if call.module is not None:
        kind = torch.nn.modules.batchnorm
        return isinstance(call.module, kind._BatchNorm) and not isinstance(call.module, kind.SyncBatchNorm)
    return call.kind in NORMS


def batch_norms(evidence: Evidence) -> list[BatchNorm]:
    """Every batch norm called on a GPU, with its backend: as it ran, else as PyTorch says, else by its rules."""
    ran = {o.module: RAN[o.name] for o in evidence.ops or () if o.name in RAN and o.phase == "forward"}
    found = []
    for call in evidence.modules or ():
        if not is_batch_norm(call) or not call.inputs or call.inputs[0].device != "cuda":
            continue
        why = broken(call, evidence.config.switches.get("cudnn.enabled") is not False)
        asked = ran.get(call.path) or _asked(evidence, call)
        known = "ran" if call.path in ran else "PyTorch says" if asked else "by PyTorch's rules"
        found.append(BatchNorm(call, asked or ("Native" if set(why) - {"evaluation"} else "Cudnn"), known, why))
    return found


def broken(call: ModuleCall, enabled: bool = True) -> tuple[str, ...]:
    """The keys of BROKEN that keep this call from cuDNN, empty if none does."""
    x, weight, bias = call.inputs[0], call.parameters.get("weight"), call.parameters.get("bias")
    mean, variance = call.parameters.get("running_mean"), call.parameters.get("running_var")
    training = call.training or mean is None and variance is None      # what F.batch_norm is told
    samples = x.shape[0] if x.shape else 0
    differentiated = x.requires_grad or weight is not None and weight.requires_grad
    conditions = {
        "bfloat16": "bfloat16" in (x.dtype, weight.dtype if weight is not None else ""),
        "half weights": x.dtype == "float16" and weight is not None and weight.dtype == "float16",
        "no weights": weight is None or bias is None,
        "statistics": (mean is None) != (variance is None),
        "2-d": len(x.shape) < 3,
        "too many samples": samples > (LARGEST_TRAINING if training else LARGEST_EVALUATION),
        "too large": x.numel >= LARGEST_TENSOR,
        "switched off": not enabled,
        "evaluation": not training and differentiated,
    }
    return tuple(name for name, is_so in conditions.items() if is_so)


def _asked(evidence: Evidence, call: ModuleCall) -> str | None:
    m, x = call.module, call.inputs[0]
    if m is None or not torch.cuda.is_available():
        return None
    like = torch.empty((1,) * len(x.shape), dtype=getattr(torch, x.dtype), device=x.device).expand(x.shape)      # nothing is allocated
    return evidence.backend("batch_norm", like, m.weight, m.bias, m.running_mean, m.running_var, call.training or m.running_mean is None, m.eps)


def native_norms(trace, wanted: Callable[[str, str | None], bool]) -> Kernels | None:
    """ATen's batch norm kernels in a trace of which wanted(input, weights) is true; dtypes as in "Half", "BFloat16", "float",
    weights None where the name does not say. Those of SyncBatchNorm are left out. None without a trace or such kernels."""
    def is_one(row):
        m = NATIVE_NORM.search(row.name)
        if not m or row.ops and {c.name for c in row.ops} <= SYNCHRONISED:
            return False
        last = "channels_last" in row.name
        weights = m["third"] if last and "transform_input" in row.name else None if last else m["second"]
        return wanted(_short(m["input"]), _short(weights) if weights else None)
    found = kernels(trace, is_one) if trace is not None else None
    return found if found and found.count else None


def _short(name: str) -> str:
    return name.rpartition("::")[2]
