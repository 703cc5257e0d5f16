"""The probe interface: everything that a file in `probes/` sees. One file is one slow path: disease, symptom and cure.

A probe is a file `<name>.py` with

    a docstring     first line: the disease in one sentence; then the headings of HEADINGS, each with its text
    USES            the layers of evidence that it can work from, cheapest first: "config", "model", "ops", "trace".
                    It is asked as soon as one of them is there; the others may be None, so it looks before it leaps
    DEVICES         where the disease exists: ("cpu", "cuda") or ("cuda",), ("cpu",)
    detect(evidence) -> iterable of Finding     silent if healthy; `Finding(probe="")`: the name is filled in
    fix(workload) -> Workload                   the cure; left out if there is none, then the finding is a hint.
                    Several candidates: CURES = {"name": function} instead, each is tried
                    A finding that the cure cannot help (the user's own code is the cause) says so: Finding(extra={"hint": True})
    COSTLY          True if trying the cure takes long (compiling), or the names of those candidates: `diagnose` leaves them to `fix`
    plant(workload) -> Workload                 the disease, on purpose, on the clean workload given
    HEAP            True if the cure changes what malloc does with freed memory; all others are timed with a heap that keeps it
    healthy(workload) -> Workload               the same with all that `plant` adds but the disease, as one would write it who knew better: what
                    fix(plant(workload)) has to be as fast as. Left out where that is the workload itself
    examples() -> (ill, healthy)                evidence made by hand for what a CPU cannot show; for DEVICES without "cpu"
    edit(source) -> list of perfscope.patch.Edit    the cure in the user's source; optional
    CODE            the lines to add, for a user whose source is not known; DEVICE in it becomes "cpu" or "cuda"

Workloads are frozen: a cure gives `dataclasses.replace(workload, ...)`. Global switches belong into `contexts`, never into
the module level: `diagnose` and `fix` measure base and cure in turns in one process.
Evidence may come from somebody else's machine: a probe asks `evidence.config.device`, never torch.cuda.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

from perfscope.finding import Finding, Place
from perfscope.measure.stats import Interval

if TYPE_CHECKING:
    from perfscope.workload import Workload

__all__ = ["Config", "Evidence", "Finding", "Interval", "ModuleCall", "OpCall", "Place", "Tensor", "HEADINGS",
           "LAYERS", "MATMULS", "CONVOLUTIONS", "add", "replace", "setting"]

LAYERS = ("config", "model", "ops", "trace")
HEADINGS = ("What it sees", "Why it is slow", "Cure", "Not for", "References")
MATMULS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}      # where the two factors stand among the tensors
CONVOLUTIONS = ("convolution", "convolution_backward")
PHASES = ("data", "forward", "loss", "backward", "clip", "optimizer", "after")


@dataclass(frozen=True)
class Tensor:
    """What a tensor looked like: no data. `parameter` names the model's parameter or buffer that it is, if it is one."""

    shape: tuple[int, ...] = ()
    dtype: str = "float32"                      # "float32", "bfloat16", "int64", ...
    strides: tuple[int, ...] = ()
    device: str = "cpu"                         # "cpu", "cuda"
    parameter: str = ""
    requires_grad: bool = False
    pinned: bool = False

    @property
    def numel(self) -> int:
        n = 1
        for side in self.shape:
            n *= side
        return n

    @property
    def bytes(self) -> int:
        width = {"float64": 8, "int64": 8, "complex64": 8, "float32": 4, "int32": 4, "half": 2, "float16": 2, "bfloat16": 2, "int16": 2}
        return self.numel * width.get(self.dtype, 1)

    @property
    def layout(self) -> str:
        """"channels_last" or "contiguous" for 4-d and 5-d tensors whose memory says which, "both" where it cannot
        (one channel, or 1x1 images), "other" for slices and the like; "" for other dimensions."""
        if len(self.shape) not in (4, 5) or not self.strides:
            return ""
        first = self.strides == _dense(self.shape, range(len(self.shape)))
        last = self._matches(_dense(self.shape, (0, *range(2, len(self.shape)), 1)))
        first = first or self._matches(_dense(self.shape, range(len(self.shape))))
        return "both" if first and last else "contiguous" if first else "channels_last" if last else "other"

    def _matches(self, strides) -> bool:
        return all(a == b or n == 1 for a, b, n in zip(self.strides, strides, self.shape))


def _dense(shape, order) -> tuple[int, ...]:
    """Strides of a dense tensor whose dimensions lie in memory in this order, outermost first."""
    strides, step = [0] * len(shape), 1
    for d in reversed(tuple(order)):
        strides[d], step = step, step * shape[d]
    return tuple(strides)


@dataclass(frozen=True)
class OpCall:
    """One ATen operator of one training step, below autograd, in the order of execution.

    `name` is without "aten::" and overload ("convolution", "native_batch_norm", "_to_copy"). `inputs` are its tensors in the
    schema's order, lists flattened; `args` its other arguments by name, JSON-ready. `module` is the path of the innermost
    module that was running forward ("" in the backward pass), `line` the innermost line of the user's own source.
    """

    name: str
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)
    phase: str = "forward"
    module: str = ""
    line: str = ""

    @property
    def flops(self) -> int:
        """Of a matmul or a convolution, 2 per multiply-add, as torch.utils.flop_counter counts; 0 for other operators and for
        attention. A convolution's backward counts twice its forward, or once where only one of its two gradients was wanted."""
        if self.name in MATMULS:
            a, b = (self.inputs[i] for i in MATMULS[self.name])
            return 2 * a.numel * b.shape[-1]
        if self.name not in CONVOLUTIONS or len(self.inputs) < 2:
            return 0
        backward = self.name == "convolution_backward"
        result, image, weight = self.inputs[:3] if backward else (self.outputs[0], *self.inputs[:2])
        dense = image if self.args.get("transposed") else result
        times = sum(self.args.get("output_mask", (True, True))[:2]) if backward else 1
        return 2 * times * dense.numel * (weight.numel // weight.shape[0])


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module's forward, in the order in which calls began; `module` is the live module (None in evidence by hand)."""

    path: str
    kind: str                                   # class name
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    parameters: dict[str, Tensor] = field(default_factory=dict)      # its own: "weight", "bias", "running_mean", ...
    training: bool = True
    leaf: bool = True
    module: Any = None
    args: dict[str, Any] = field(default_factory=dict)   # kernel_size, stride, groups, affine, eps, ...: plain attributes


@dataclass(frozen=True)
class Config:
    """The machine's and the process's settings, and how the workload is run.

    `switches`: torch's global ones by dotted name ("cudnn.benchmark", "matmul.precision", "deterministic", "anomaly", ...).
    `loader`: what is known of the input pipeline ({} if nothing): workers, pin_memory, in_process, seconds per batch, bytes.
    `observed`: counted over a few steps: allocations, collections, recompilations, seconds in the garbage collector, ...
    """

    device: str = "cpu"
    device_name: str = ""
    capability: tuple[int, int] = (0, 0)        # of the CUDA device
    instruction_sets: tuple[str, ...] = ()
    cores: float = 1.0                          # usable, by the control group's quota too
    threads: int = 1
    torch: str = ""
    cudnn: int | None = None
    dtype: str = "float32"
    memory_format: str = "contiguous"
    compile: str = "off"
    cuda_graph: bool = False
    batch_size: int = 0
    optimizer: str = ""
    optimizer_options: dict[str, Any] = field(default_factory=dict)   # foreach, fused, capturable, ...
    set_to_none: bool = True
    scaler: bool = False
    ddp: dict[str, Any] | None = None           # None: not distributed
    switches: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)              # device: total, free, peak (bytes)
    observed: dict[str, Any] = field(default_factory=dict)
    step_s: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What is known of a training step. A layer that was not gathered is None (or empty): look before you leap.

    alone(a, b) times two functions in turns, both without arguments, and gives (seconds of a, seconds of b, Interval of
    ln(b/a)); None where timing makes no sense (a trace from elsewhere). Use it for a suspect layer with and without the cure.
    backend(name, *args) asks PyTorch which backend it would pick (perfscope.evidence.backends); None if it does not answer.
    """

    config: Config = Config()
    modules: tuple[ModuleCall, ...] | None = None
    ops: tuple[OpCall, ...] | None = None
    trace: Any = None                           # perfscope.trace.analysis.RankAnalysis
    workload: Workload | None = None
    alone: Callable[[Callable, Callable], tuple[float, float, Interval] | None] = lambda a, b: None
    backend: Callable[..., str | None] = lambda *args: None

    def has(self, layer: str) -> bool:
        return {"config": bool(self.config.torch), "model": self.modules is not None, "ops": self.ops is not None,
                "trace": self.trace is not None}[layer]

    def calls(self, *names: str, phase: str = "") -> Iterator[OpCall]:
        """The operator calls of these names, of one phase or of all."""
        return (o for o in self.ops or () if o.name in names and phase in ("", o.phase))

    def of(self, *kinds: str) -> Iterator[ModuleCall]:
        """The calls of modules of these class names."""
        return (m for m in self.modules or () if m.kind in kinds)

    def time_share(self, *names: str) -> float | None:
        """The share that operators of these names ("convolution" or "aten::convolution") have of the traced step: of the device's
        busy time on a GPU, of the operators' own time on a CPU. None without a trace."""
        rows = self.trace.ops if self.trace is not None else ()
        wanted = {n.removeprefix("aten::") for n in names}
        own = lambda r: r.device_self_ns if self.trace.device_events else r.host_self_ns  # noqa: E731
        total = sum(own(r) for r in rows)
        return sum(own(r) for r in rows if r.name.removeprefix("aten::") in wanted) / total if total else None


def add(workload: Workload, *, on_model: Iterable = (), on_optimizer: Iterable = (), contexts: Iterable = (), **fields) -> Workload:
    """The workload with hooks and contexts added behind its own, and fields replaced."""
    return replace(workload, on_model=(*workload.on_model, *on_model), on_optimizer=(*workload.on_optimizer, *on_optimizer),
                   contexts=(*workload.contexts, *contexts), **fields)


def setting(owner, **values) -> Callable:
    """A context for Workload.contexts: these attributes of `owner` (torch.backends.cudnn, ...) while inside, then what they were.

    Not torch.backends.cudnn.flags(), which also sets what it was not asked to, cudnn.enabled=False among it.
    """
    @contextmanager
    def context():
        before = {name: getattr(owner, name) for name in values}
        try:
            for name, value in values.items():
                setattr(owner, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(owner, name, value)
    return context
