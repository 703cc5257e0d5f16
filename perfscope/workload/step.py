"""One training step, with some of its parts or all: eager, autocast, compiled or captured in a CUDA graph.

`prepare` puts a workload on its device in its dtype and layout; `make_variant` builds the step with the parts that are
asked for. All variants share one model and one optimizer. The learning rate is set to 1e-20, so that the weights stay
what they are and every variant sees the same, sane activations from the first sample to the last; the optimizer does
exactly the work it would do at any other rate.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import torch

from perfscope.errors import EnvironmentError_, UsageError, WorkloadError
from perfscope.record import ON_REQUEST, PARTS, variant_name
from perfscope.registry import PACKAGE
from perfscope.workload import parts as taking
from perfscope.workload.data import fixed_rows
from perfscope.workload.workload import Workload

DTYPES = {"float32": None, "half": torch.float16, "bfloat16": torch.bfloat16,
          "amp-half": torch.float16, "amp-bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")
#: A learning rate that leaves every weight as it is. Not 0, because optimizers divide by it; not 1e-12, which moves small
#: weights; not 1e-30, which makes subnormal numbers (slow on a CPU) out of weights that are 0.
RATE = 1e-20


@dataclass(frozen=True)
class Prepared:
    """A workload on its device, ready to be taken apart."""

    workload: Workload
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: str = "float32"
    memory_format: str = "contiguous"
    compile: str = "off"
    cuda_graph: bool = False
    scaler: Any = None
    distributed: Any = None                     # the DDP wrapper, if there are several ranks
    handwritten: list = field(default_factory=list)
    stored_gradients: dict = field(default_factory=dict)   # parameter -> gradient, for variants that leave it without one


@dataclass(frozen=True)
class Batches:
    """The preloaded random batch of one size, and the iterator of the real input pipeline (None if there is none)."""

    size: int
    inputs: Any
    target: Any
    pipeline: Any = None


@dataclass
class VariantStep:
    """A variant that can be timed: `enter()`, then `step()` any number of times, then `leave()`."""

    name: str
    parts: frozenset
    step: Callable[[], Any]                     # -> the loss
    compute: Callable[[Any, Any], Any]          # the step on a batch that is on the device already
    context: Callable[[], contextlib.AbstractContextManager]
    fill: list = field(default_factory=list)    # (parameter, gradient) set after each backward pass
    scales: dict = field(default_factory=dict)  # parameter -> power of two while entered
    copied: bool = False
    out_of_place: bool = False
    loss: Any = None                            # of the first step
    _entered: Any = None

    def enter(self):
        if self._entered is not None:
            raise RuntimeError(f"the variant {self.name} is entered already")
        with contextlib.ExitStack() as stack:       # whatever fails or is interrupted in between, nothing stays changed
            stack.enter_context(self.context())
            for parameter, factor in self.scales.items():
                scale(parameter, factor, stack)
            self._entered = stack.pop_all()
        return self

    def leave(self):
        entered, self._entered = self._entered, None
        if entered is not None:
            entered.close()

    __enter__ = enter

    def __exit__(self, *error):
        self.leave()


def scale(parameter, factor: float, stack: contextlib.ExitStack) -> None:
    """Multiplies a parameter by a power of two until the stack unwinds; then it is what it was, bit for bit."""
    kept = parameter.detach().clone() if factor < 1 and parameter.dtype == torch.float16 else None    # subnormals lose bits
    with torch.no_grad():
        parameter.mul_(factor)
    stack.callback(_unscale, parameter, factor, kept)


def _unscale(parameter, factor, kept) -> None:
    with torch.no_grad():
        parameter.copy_(kept) if kept is not None else parameter.mul_(1 / factor)


def prepare(workload: Workload, *, device="cpu", dtype=None, memory_format=None, compile=None,
            cuda_graph=None, keep_original=True, world_size=1, seed=0) -> Prepared:
    """The workload on `device` in its dtype and layout; how it is run is the workload's own say where it is not given.
    The caller's own model is left alone if `keep_original`.

    Raises UsageError for an unknown dtype or layout, EnvironmentError_ for a device that is not there, WorkloadError
    for an optimizer that cannot be stepped without a closure.
    """
    device = check_device(device)
    given = {"dtype": dtype, "memory_format": memory_format, "compile": compile, "cuda_graph": cuda_graph}
    workload = replace(workload, **{k: v for k, v in given.items() if v is not None})
    dtype, memory_format, compile, cuda_graph = workload.dtype, workload.memory_format, workload.compile, workload.cuda_graph
    for what, value, known in (("dtype", dtype, DTYPES), ("memory format", memory_format, LAYOUTS),
                               ("compile mode", compile, COMPILE_MODES)):
        if value not in known:
            raise UsageError(f"there is no {what} {value!r}", f"Known: {', '.join(known)}")
    if cuda_graph and device.type != "cuda":
        raise UsageError(f"--cuda-graph needs a CUDA device; this run is on {device.type}", "Leave it out, or give --device cuda.")
    if compile != "off" and world_size > 1:
        raise UsageError("--compile with several ranks is not supported", "Compile on one GPU, or leave --compile out.")
    torch.manual_seed(seed)
    model, optimizer = workload.model, workload.optimizer
    if keep_original:
        try:
            model, optimizer = copy.deepcopy((model, optimizer))
        except Exception as e:
            raise WorkloadError(f"the model cannot be copied: {type(e).__name__}: {e}",
                                "Give a function that builds the workload instead of the workload.") from None
    model.train()
    low = DTYPES[dtype] if not dtype.startswith("amp") else None
    model.to(device=device, **({"dtype": low} if low else {}))
    if memory_format == "channels_last":
        model.to(memory_format=torch.channels_last)
    for change in workload.on_model:
        changed = change(model)
        model = model if changed is None else changed        # a compiled module has no truth value
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer([p for p in model.parameters() if p.requires_grad])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise WorkloadError(f"the workload's optimizer is a {type(optimizer).__name__}",
                            "Give a torch optimizer, or a callable that makes one from the parameters.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise WorkloadError("LBFGS needs a closure and runs the model several times per step: there is no one step to take apart",
                            "Measure with a first-order optimizer.")
    for change in workload.on_optimizer:
        changed = change(optimizer)
        optimizer = optimizer if changed is None else changed
    for group in optimizer.param_groups:
        group["lr"] = torch.full_like(group["lr"], RATE) if isinstance(group["lr"], torch.Tensor) else RATE
        if cuda_graph and "capturable" in group:
            group["capturable"] = True
    scaled = dtype == "amp-half" if workload.scaler is None else workload.scaler
    scaler = torch.amp.GradScaler(device.type) if scaled else None
    distributed = None
    if world_size > 1:
        from torch.nn.parallel import DistributedDataParallel
        distributed = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None, **workload.ddp)
    return Prepared(workload, model, optimizer, device, dtype, memory_format, compile, cuda_graph, scaler, distributed)


def with_options(workload: Workload, options) -> Workload:
    """The workload run as `options` (perfscope.options.Options) say: what differs from their defaults wins over its own."""
    asked = {name: getattr(options, name) for name in ("dtype", "memory_format", "compile", "cuda_graph")}
    default = type(options)()
    return replace(workload, **{name: value for name, value in asked.items() if value != getattr(default, name)})


def check_device(device) -> torch.device:
    """The torch device, "auto" resolved. EnvironmentError_ if it is not there, UsageError if it makes no sense."""
    if str(device) == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"there is no device {device!r}", "Known: auto, cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "this PyTorch is a build without CUDA" if torch.version.cuda is None else "no GPU or no driver was found"
            raise EnvironmentError_(f"CUDA was asked for, but {why} (torch {torch.__version__})",
                                    "Use --device cpu, or install a CUDA build of PyTorch.")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise EnvironmentError_(f"there is no {device}: this machine has {torch.cuda.device_count()} GPU(s)")
        device = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    elif device.type != "cpu":
        raise UsageError(f"perfscope measures on cpu and cuda, not on {device.type}", "Use --device cpu or cuda.")
    return device


def convert(value, prepared: Prepared, non_blocking=False):
    """A batch, nested or not, on the device in the model's dtype (floating tensors only) and layout (4-d only)."""
    if isinstance(value, torch.Tensor):
        low = DTYPES[prepared.dtype] if not prepared.dtype.startswith("amp") else None
        value = value.to(prepared.device, low if low and value.is_floating_point() else value.dtype, non_blocking=non_blocking)
        if prepared.memory_format == "channels_last" and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value
    if isinstance(value, dict) or hasattr(value, "items"):
        return {k: convert(v, prepared, non_blocking) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        values = [convert(v, prepared, non_blocking) for v in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)      # a named tuple, or a plain one
    return value


def load_batches(prepared: Prepared, size: int) -> Batches:
    """The preloaded batch and the pipeline of one batch size. WorkloadError if the workload's own code fails."""
    workload = prepared.workload
    try:
        pair = workload.batch(size) if callable(workload.batch) else fixed_rows(workload.batch, size)
        inputs, target = pair
    except WorkloadError:
        raise
    except Exception as e:
        raise WorkloadError(f"the workload's batch({size}) failed: {type(e).__name__}: {e}",
                            "It has to give (inputs, target) of that many samples.", traceback_text(e)) from None
    pipeline = iter(workload.data(size)) if workload.data else None
    return Batches(size, convert(inputs, prepared), convert(target, prepared), pipeline)


def call_model(model, inputs):
    """model(x), model(*inputs) or model(**inputs)."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def first_tensor(output) -> torch.Tensor:
    """The first floating tensor of a model's output, whatever it comes wrapped in."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0:
            return value
    raise WorkloadError("the model's output holds no floating-point tensor", "Leave --parts loss out.")


def autocast(prepared: Prepared):
    """The autocast context of the workload's dtype; does nothing for dtypes that are not "amp-..."."""
    if prepared.dtype.startswith("amp"):
        return torch.autocast(prepared.device.type, DTYPES[prepared.dtype])
    return contextlib.nullcontext()


def present_parts(prepared: Prepared, batches: Batches, wanted=()) -> tuple[str, ...]:
    """The parts that this step has, in ladder order: those that really run, and those asked for by name."""
    counts: dict[str, int] = {}

    def forward():
        with autocast(prepared):
            return call_model(prepared.model, batches.inputs)
    everything = [p for p in taking.OPERATOR_PARTS if p not in ON_REQUEST or p in wanted]
    prepared.handwritten[:] = taking.find_handwritten(prepared.model, forward, prepared.device.type)
    removed = [p for p in everything if p not in ON_REQUEST]
    with torch.no_grad(), taking.Overrides((), prepared.device.type, parts=removed, counts=counts), \
            taking.without_modules(prepared.model, prepared.handwritten, removed):
        forward()
    found = set(counts) | {h.part for h in prepared.handwritten} | {"optimizer"}
    found |= {"data"} if batches.pipeline is not None else set()
    found |= {"communication"} if prepared.distributed is not None else set()
    found |= set(wanted) & set(ON_REQUEST)
    return tuple(p for p in PARTS if p in found and (not wanted or p in wanted))


class PerVariantBackend:
    """Inductor, as a backend object of its own for each variant: Dynamo reuses compiled code only for the same one."""

    def __init__(self, mode: str):
        from torch._inductor import list_mode_options
        self.options = {} if mode == "default" else list_mode_options(mode)
        self.graphs = 0

    def __call__(self, graph, inputs, **kwargs):
        from torch._functorch import config as functorch_config
        from torch._inductor.compile_fx import compile_fx
        self.graphs += 1
        # AOTAutograd's cache is keyed by the traced Python graph, which is the same for every variant
        with functorch_config.patch(enable_autograd_cache=False):
            return compile_fx(graph, inputs, config_patches=self.options)


def compiled(model, mode: str):
    """The model compiled for one variant and one batch size."""
    import torch._dynamo as dynamo
    for name in ("recompile_limit", "accumulated_recompile_limit", "cache_size_limit", "accumulated_cache_size_limit"):
        if hasattr(dynamo.config, name):
            setattr(dynamo.config, name, 4096)   # 16 variants x many batch sizes are no recompilation problem
    return torch.compile(model, backend=PerVariantBackend(mode), dynamic=False)


class _Attach(torch.autograd.Function):
    """Gives parameters that a variant leaves without a gradient a stored one, inside the graph (DDP waits for all)."""

    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.gradients = gradients
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, *ctx.gradients


def make_variant(prepared: Prepared, batches: Batches, keep, all_parts, *, copied=False, out_of_place=False) -> VariantStep:
    """The training step that keeps the parts `keep` out of `all_parts` (those of the full step)."""
    keep, p = frozenset(keep), prepared
    removed = [x for x in all_parts if x not in keep]
    operator_parts = [x for x in removed if x in taking.OPERATOR_PARTS]
    if p.compile != "off" and any(x in ON_REQUEST and x != "loss" for x in removed):
        raise UsageError("pooling, residual and embedding cannot be separated under --compile", "Leave them out of --parts.")

    @contextlib.contextmanager
    def context():
        with contextlib.ExitStack() as stack:
            stack.enter_context(p.workload.within())
            if operator_parts or out_of_place:
                stack.enter_context(overrides)
                stack.enter_context(taking.without_modules(p.model, p.handwritten, operator_parts, out_of_place))
            yield
    overrides = taking.Overrides([x for x in taking.OPERATOR_PARTS if x not in operator_parts], p.device.type,
                                 copy=copied)
    fill: list = []
    model = p.distributed or p.model
    forward = compiled(model, p.compile) if p.compile != "off" else model
    optimizer, scaler, loss_fn = p.optimizer, p.scaler, p.workload.loss
    with_loss = "loss" in keep or "loss" not in all_parts
    with_data, with_optimizer = "data" in keep, "optimizer" in keep
    synchronise = "communication" in keep or p.distributed is None
    top_gradient = []

    def compute(inputs, target):
        optimizer.zero_grad(set_to_none=p.workload.set_to_none)
        with autocast(p):
            output = call_model(forward, inputs)
            loss = loss_fn(output, target) if with_loss else first_tensor(output)
        if p.distributed is not None and fill:
            loss = _Attach.apply(loss, tuple(g for _, g in fill), *(q for q, _ in fill))
        if not with_loss:
            if not top_gradient:
                top_gradient.append(torch.randn_like(loss).div_(loss.shape[0]))
            loss.backward(top_gradient[0])
        elif scaler is not None:
            scaler.scale(loss).backward()
        else:
            loss.backward()
        if p.distributed is None:
            for parameter, gradient in fill:
                parameter.grad = gradient
        if with_optimizer:
            if p.workload.clip is not None:
                if scaler is not None:
                    scaler.unscale_(optimizer)
                p.workload.clip([q for group in optimizer.param_groups for q in group["params"]])
            if scaler is not None:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            if p.workload.after_step is not None:
                p.workload.after_step(loss)
        return loss

    def step():
        if with_data:
            inputs, target = next(batches.pipeline)
            inputs, target = convert(inputs, p, True), convert(target, p, True)
        else:
            inputs, target = batches.inputs, batches.target
        if synchronise:
            return compute(inputs, target)
        with p.distributed.no_sync():
            return compute(inputs, target)

    return VariantStep(variant_name(keep), keep, step, compute, context, fill, copied=copied, out_of_place=out_of_place)


def eager(prepared: Prepared) -> Prepared:
    """The same without compiling or capturing: to look at what runs."""
    return replace(prepared, compile="off", cuda_graph=False)


def build(prepared: Prepared, batches: Batches, keep, all_parts, expected=None) -> VariantStep:
    """A variant that has run once. Where handing through collides with in-place writes, it falls back, and says so.

    `expected` names the parameters that have a gradient in the full step; those that this variant leaves without one
    are given a stored gradient, so that the optimizer (and DDP) do the same work in every variant.
    """
    local = replace(prepared, distributed=None)
    for attempt in ({}, {"out_of_place": True}, {"out_of_place": True, "copied": True}):
        variant = make_variant(local, batches, keep, all_parts, **attempt)
        try:
            with variant:
                variant.loss = variant.step().detach()
            break
        except RuntimeError as e:
            if not ("inplace" in str(e) or "in-place" in str(e)) or "copied" in attempt:
                raise
    missing = [(q, _stored(prepared, q)) for n, q in prepared.model.named_parameters()
               if n in (expected or ()) and q.grad is None]
    if prepared.distributed is not None:
        variant = replace(make_variant(prepared, batches, keep, all_parts, **attempt), loss=variant.loss)
    variant.fill[:] = missing
    return variant


def _stored(prepared, parameter):
    if parameter not in prepared.stored_gradients:
        prepared.stored_gradients[parameter] = torch.randn_like(parameter).mul_(1e-3).detach()
    return prepared.stored_gradients[parameter]


def loss_value(loss: torch.Tensor) -> float:
    """The loss as a number; the mean of the model's output in a variant without the loss."""
    return float(loss.detach().mean())


def with_gradient(prepared: Prepared) -> set[str]:
    """The names of the parameters that have a gradient now."""
    return {n for n, q in prepared.model.named_parameters() if q.grad is not None}


def capture(variant: VariantStep, prepared: Prepared, batches: Batches) -> Callable[[], Any]:
    """The variant's step captured in a CUDA graph: a callable that replays it. The variant must be entered.

    The data part stays outside the graph: each replay first copies a batch of the pipeline into the static one.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            variant.compute(batches.inputs, batches.target)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        variant.compute(batches.inputs, batches.target)
    if "data" not in variant.parts:
        return graph.replay

    def replay():
        inputs, target = next(batches.pipeline)
        copy_into(batches.inputs, convert(inputs, prepared, True))
        copy_into(batches.target, convert(target, prepared, True))
        graph.replay()
    return replay


def copy_into(static, fresh) -> None:
    """Copies a batch, nested or not, into one of the same shape."""
    if isinstance(static, torch.Tensor):
        static.copy_(fresh, non_blocking=True)
    elif isinstance(static, dict):
        for key, value in static.items():
            copy_into(value, fresh[key])
    elif isinstance(static, (tuple, list)):
        for a, b in zip(static, fresh):
            copy_into(a, b)


def traceback_text(error: BaseException) -> str:
    """The user's own traceback, with perfscope's frames left out."""
    import traceback
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not Path(f.filename).is_relative_to(PACKAGE)]
    return "".join(traceback.format_list(frames)) + "".join(traceback.format_exception_only(error))
