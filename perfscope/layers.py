"""What probes of norms, convolutions and layouts share: the backend of a batch norm and why, layers timed alone, kernels of a trace.

    for norm in batch_norms(evidence): norm.backend, norm.why        # "Native", ("half weights",)
    saved(evidence, calls, change)                                    # share of the step, the layers alone with and without it
    kernels(trace, lambda row: row.layout)                            # how many, how long, which share

Imported by probes as part of the probe interface.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterable

import torch

from perfscope.finding import Place
from perfscope.measure.stats import Interval
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
ALONE_RUN_S = 0.05              # one run of the layers alone: 18 of them make an experiment of evidence.ALONE_ROUNDS pairs, so below 1 s
ALONE_MEMORY = 0.125            # of the free memory that their inputs may take: forward and backward need about three times as much
NORMS = tuple(f"BatchNorm{d}d" for d in (1, 2, 3))


# ---------------------------------------------------------------- batch norm

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
        because = "; ".join(BROKEN[w] for w in self.why)
        return Place(self.call.path, f"{self.call.kind} {x.shape} {x.dtype}{layout}, {weights}: {self.backend} ({self.known})" + (f", {because}" if because else ""))


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


# ---------------------------------------------------------------- kernels of a trace

@dataclass(frozen=True)
class Kernels:
    """Some kernels of a trace: how many, how long, their share of the time of all kernels and of those that do not communicate."""

    count: int
    total_ns: int
    share: float
    outside: float
    rows: tuple = ()

    @property
    def said(self) -> str:
        """"392 kernels, 7.93 ms, 8.2 % of kernel time (30.8 % outside communication)"."""
        apart = f" ({self.outside:.1%} of it outside communication)" if abs(self.outside - self.share) > 5e-4 else ""
        return f"{self.count} kernels, {self.total_ns / 1e6:.2f} ms, {self.share:.1%} of kernel time{apart}".replace("%", " %")

    @property
    def figures(self) -> dict[str, Any]:
        """The same for Finding.evidence; with the names."""
        return {"kernels": self.count, "ms": round(self.total_ns / 1e6, 6), "share_of_kernels": self.share, "share_outside_communication": self.outside,
                "names": [r.name[:160] for r in self.rows[:8]]}


def kernels(trace, wanted: Callable[[Any], bool]) -> Kernels:
    """The kernels of a trace (RankAnalysis) whose row is wanted."""
    rows = tuple(r for r in trace.kernels if wanted(r))
    total = sum(r.total_ns for r in rows)
    everything = sum(r.total_ns for r in trace.kernels)
    computing = sum(r.total_ns for r in trace.kernels if r.category != "communication")
    return Kernels(sum(r.count for r in rows), total, total / everything if everything else 0.0, total / computing if computing else 0.0, rows)


def kernel_places(found: Kernels, most: int = 8) -> list[Place]:
    """One place per kernel name, the longest first."""
    everything = found.total_ns / found.share if found.share else 0
    return [Place(r.name[:100], f"{r.count} launches, {r.total_ns / 1e6:.2f} ms, {r.total_ns / max(everything, 1):.1%} of kernel time".replace("%", " %")
                  + (f", from {', '.join(c.name for c in r.ops[:3])}" if r.ops else "")) for r in found.rows[:most]]


def op_places(trace, *names: str, most: int = 8) -> list[Place]:
    """One place per operator and shape of these names in a trace in which shapes were recorded, the longest first."""
    rows = [r for r in trace.ops if r.name.removeprefix("aten::") in names and r.shapes]
    return [Place(r.name, f"{r.count} calls, shapes {r.shapes}, strides {r.strides or 'not recorded'}, dtypes {r.dtypes}") for r in rows[:most]]


def trace_of(*rows: tuple[str, int, int] | tuple[str, int, int, str], ops=()):
    """A RankAnalysis made by hand for a probe's examples: (kernel name, count, total ns[, operator that launched it]), and OpRows."""
    from perfscope.trace.analysis import RankAnalysis
    from perfscope.trace.names import kind
    from perfscope.trace.tables import Caller, KernelRow
    everything = sum(r[2] for r in rows) or 1
    made = []
    for name, count, ns, *op in rows:
        k = kind(name)
        made.append(KernelRow(name, k.category, count, ns, ns // count, ns // count, ns / everything, k.tensor_cores, k.layout, k.norm, count,
                              tuple(Caller(o, count, ns) for o in op)))
    return RankAnalysis(0, 1, "by hand", device_events=sum(r[1] for r in rows), device_events_ns=everything, kernels_ns=everything,
                        kernels=tuple(sorted(made, key=lambda r: -r.total_ns)), ops=tuple(ops))


# ---------------------------------------------------------------- layers alone

Change = Callable[[torch.nn.Module, torch.Tensor], tuple[torch.nn.Module, torch.Tensor]]


def runner(evidence: Evidence, calls: Iterable[ModuleCall], change: Change | None = None) -> Callable[[], None] | None:
    """A function that runs each of these layers alone, forward and backward, on random inputs like those recorded. None if a
    layer is not there to be run, takes several inputs, or their inputs take too much memory.

    The layers are copies; change(layer, input) gives both as they would be with the cure. Zeros are faster than data, so
    they are not used (METHOD 9).
    """
    calls = list(calls)
    free = evidence.config.memory.get("free", 0)
    if not calls or any(c.module is None or len(c.inputs) != 1 or not c.inputs[0].strides for c in calls):
        return None
    if free and sum(c.inputs[0].bytes for c in calls) > ALONE_MEMORY * free:
        return None
    layers = []
    for c in calls:
        layer, x = copy.deepcopy(c.module), like(c.inputs[0])
        if change is not None:
            layer, x = change(layer, x)
        x.requires_grad_(c.inputs[0].requires_grad)
        leaves = [t for t in (x, *layer.parameters()) if t.requires_grad]
        layers.append((layer, x, leaves))
    dtype = evidence.config.dtype
    low = {"amp-half": torch.float16, "amp-bfloat16": torch.bfloat16}.get(dtype)
    device = calls[0].inputs[0].device

    def run():
        with torch.autocast(device, low) if low else contextlib.nullcontext():
            outputs = [layer(x) for layer, x, _ in layers]
        for y, (_, _, leaves) in zip(outputs, layers):
            if leaves:
                torch.autograd.grad(y, leaves, torch.ones_like(y))
    return run


def like(t: Tensor) -> torch.Tensor:
    """A random tensor of this shape, dtype, strides and device. The strides have to be those of a dense tensor."""
    made = torch.empty_strided(t.shape, t.strides, dtype=getattr(torch, t.dtype), device=t.device)
    return made.normal_(generator=torch.Generator(t.device).manual_seed(0)) if made.is_floating_point() else made.zero_()


def saved(evidence: Evidence, calls: Iterable[ModuleCall], change: Change) -> Interval | None:
    """The share of the step that `change` saves in these layers, measured on them alone; negative if it costs. `extra["share"]`: of the
    step that they take. None if that cannot be measured in well under a second."""
    calls = list(calls)
    if not evidence.config.step_s:
        return None
    try:
        before, after = runner(evidence, calls), runner(evidence, calls, change)
        if before is None or after is None or not all(_quick(f) for f in (before, after)):
            return None
        timed = evidence.alone(before, after)
    except (RuntimeError, TypeError, ValueError):       # a layer that cannot be run alone says nothing about the step
        return None
    if timed is None:
        return None
    share = timed[0] / evidence.config.step_s
    ratio = timed[2]
    saving = lambda x: -math.expm1(x) * share if math.isfinite(x) else math.nan  # noqa: E731
    return Interval(saving(ratio.point), saving(ratio.high), saving(ratio.low), {"share": share})


def _quick(run: Callable[[], None]) -> bool:
    run()
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin < ALONE_RUN_S
