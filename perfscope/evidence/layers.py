"""What probes about layers share: kernels of a trace, layers timed alone. The rules of batch norm are in norms.py.

    kernels(trace, lambda row: row.layout)                            # how many, how long, which share
    saved(evidence, calls, change)                                    # share of the step, the layers alone with and without it

Imported by probes as part of the probe interface.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterable

import torch

from perfscope.finding import Place
from perfscope.measure.stats import Interval
from perfscope.probe import Evidence, ModuleCall, Tensor

ALONE_RUN_S = 0.05              # one run of the layers alone: 18 of them make an experiment of evidence.ALONE_ROUNDS pairs, so below 1 s
ALONE_MEMORY = 0.125            # of the free memory that their inputs may take: forward and backward need about three times as much


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
        """"392 kernels, 7.93 ms, 8.2 % of kernel time, 30.8 % of kernel time outside communication"."""
        apart = f", {self.outside:.1%} of kernel time outside communication" if abs(self.outside - self.share) > 5e-4 else ""
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
