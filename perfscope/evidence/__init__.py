"""Gathers evidence about a training step for the probes: settings, module calls, operators of one step. No profiler.

    evidence = gather(prepared, batches)        # perfscope.probe.Evidence, without a trace

What is gathered runs a few steps of the workload in this process and leaves nothing behind: hooks are removed, no switch
is changed. Timing comes first (METHOD 13); the operators are seen by a TorchDispatchMode, below autograd.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from perfscope.evidence import backends, ddp
from perfscope.evidence.loader import facts as loader_facts
from perfscope.measure import machine, stats
from perfscope.measure.clock import Clock, clock_for, step_seconds, timed_steps
from perfscope.probe import Config, Evidence, ModuleCall, OpCall, Tensor
from perfscope.registry import PACKAGE
from perfscope.workload import step
from perfscope.workload.step import Batches, Prepared, VariantStep, build, present_parts

OBSERVED_STEPS = 5          # steps over which allocations, page faults and collections are counted;
OBSERVED_S = 2.0            # of long ones as many as fit into this time, at least one;
SHORT_STEPS, SHORT_S = 20, 0.1                      # of short ones as many as fit into that, at most 20: the heap takes some to settle
ALONE_ROUNDS = 7            # METHOD 5 needs 6 pairs for a 95 % interval
ALONE_S = 0.4               # of one experiment on a layer alone
OWN = tuple(str(PACKAGE / name) for name in ("models", "recipes", "examples"))    # perfscope's files that count as the user's
OPTIONS = ("foreach", "fused", "capturable", "differentiable", "maximize")
PLAIN = (bool, int, float, str, type(None))


def full_step(prepared: Prepared, batches: Batches) -> VariantStep:
    """The whole training step, every part in, as a variant that can be timed."""
    order = present_parts(prepared, batches)
    return build(prepared, batches, order, order)


def steps_to_observe(step_s: float) -> int:
    """How many steps of this length, in seconds, are watched for what they do besides computing."""
    per_s = 1 / max(step_s, 1e-9)
    return max(1, min(int(OBSERVED_S * per_s), max(OBSERVED_STEPS, min(int(SHORT_S * per_s), SHORT_STEPS))))


def gather(prepared: Prepared, batches: Batches, layers=("config", "model", "ops")) -> Evidence:
    """The evidence of these layers. Raises what the workload's own code raises."""
    clock, compiled_before = clock_for(prepared.device), _counters()
    variant = full_step(prepared, batches)
    with variant:
        step_s = step_seconds(variant.step, clock)
    observed = observe(prepared, variant, clock, steps_to_observe(step_s))
    observed |= _compiled_since(compiled_before)
    step_s = min(step_s, median(observed["step_s"]))        # the first is a mean over a few steps: one stall spoils it
    config = settings(prepared, batches, step_s, observed)
    modules, ops = record(prepared, batches) if {"model", "ops"} & set(layers) else (None, None)
    inside = prepared.workload.within()         # as a decorator: entered anew at each call
    return Evidence(config, modules, ops, None, prepared.workload, inside(lambda a, b: alone(a, b, clock)), inside(backends.ask))


# ---------------------------------------------------------------- settings

def settings(prepared: Prepared, batches: Batches, step_s: float, observed: dict) -> Config:
    """The Config of a workload on this machine."""
    w, device, cpu = prepared.workload, prepared.device, machine.cpu()
    cuda = device.type == "cuda"
    group = prepared.optimizer.param_groups[0]
    ddp = dict(w.ddp) if w.ddp or prepared.distributed is not None else None
    return Config(device.type, torch.cuda.get_device_name(device) if cuda else cpu["cpu"],
                  torch.cuda.get_device_capability(device) if cuda else (0, 0), tuple(cpu["instruction_sets"]), float(cpu["cores_usable"]),
                  torch.get_num_threads(), torch.__version__, torch.backends.cudnn.version() if cuda else None, prepared.dtype,
                  prepared.memory_format, prepared.compile, prepared.cuda_graph, batches.size, type(prepared.optimizer).__name__,
                  {k: group[k] for k in OPTIONS if k in group}, w.set_to_none, prepared.scaler is not None, ddp, switches(w),
                  machine.variables(), loader_facts(w, batches), memory(prepared), observed, step_s)


def switches(workload) -> dict[str, Any]:
    """Torch's global switches as they are within the workload's own contexts."""
    with workload.within():
        return {**machine.switches(), "anomaly": torch.is_anomaly_enabled(), "gc": gc.isenabled(), "gc_frozen": gc.get_freeze_count(),
                "threads": torch.get_num_threads(), "dev_mode": sys.flags.dev_mode, "profiler": torch.autograd._profiler_enabled(),
                "sync_debug": torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0, "flush_denormal": None}


def memory(prepared: Prepared) -> dict[str, int]:
    """Bytes of the device: total, free, and the peak so far."""
    if prepared.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(prepared.device)
        return {"total": total, "free": free, "peak": torch.cuda.max_memory_allocated(prepared.device)}
    total, free = machine.memory_limit()
    return {"total": total, "free": free}


def observe(prepared: Prepared, variant: VariantStep, clock: Clock, steps: int = OBSERVED_STEPS) -> dict[str, Any]:
    """What a few steps did besides computing: collections of the garbage collector, allocations, recompilations, syncs.

    Counted over `steps` steps: `gc_collections`, `gc_s`, `step_s` (each step's seconds, longest last), `page_faults` (each
    step's, likewise), `system_s`, `cpu_s` (of processor time; system: the kernel's), `device_alloc`, `alloc_retries`, `reserved`,
    `allocated` (bytes; CUDA), `sync_lines`, and `compilations`: frames that torch.compile worked on during these steps, after the
    warm-up. `gather` adds what it broke into pieces when it first compiled the step. `empty_cache`: how often the step emptied
    PyTorch's cache of device memory; and what perfscope.evidence.ddp.seen says.
    """
    found: dict[str, Any] = {"steps": steps, "gc_collections": 0, "gc_s": 0.0}
    began = [0.0]

    def collecting(phase, info):
        if phase == "start":
            began[0] = time.perf_counter()
        else:
            found["gc_collections"] += 1
            found["gc_s"] += time.perf_counter() - began[0]
    compiled_before = _counters()
    cuda = prepared.device.type == "cuda"
    stats_before = torch.cuda.memory_stats(prepared.device) if cuda else {}
    with variant:
        gc.callbacks.append(collecting)
        try:
            with mock.patch.object(torch.cuda, "empty_cache", wraps=torch.cuda.empty_cache) as emptied:
                used = [machine.usage()]
                for _ in range(steps):
                    found.setdefault("step_s", []).append(timed_steps(variant.step, 1, clock))
                    used.append(machine.usage())
        finally:
            gc.callbacks.remove(collecting)
        found["step_s"] = sorted(found["step_s"])
        found["page_faults"] = sorted(after["page_faults"] - before["page_faults"] for before, after in pairwise(used))
        found |= {name: used[-1][name] - used[0][name] for name in ("system_s", "cpu_s")}
        found |= {"empty_cache": emptied.call_count, **ddp.seen(prepared, variant.step)}
        found["sync_lines"] = _sync_lines(variant) if cuda else []
    if cuda:
        now = torch.cuda.memory_stats(prepared.device)
        for name, key in (("device_alloc", "num_device_alloc"), ("alloc_retries", "num_alloc_retries")):
            found[name] = now.get(key, 0) - stats_before.get(key, 0)
        found |= {"reserved": now.get("reserved_bytes.all.current", 0), "allocated": now.get("allocated_bytes.all.current", 0)}
    return found | {"compilations": _counters().get("frames", 0) - compiled_before.get("frames", 0)}


def _counters() -> dict[str, Any]:
    """What torch.compile has counted in this process; {} if it was never used. `reasons`: of graph breaks, with how often each."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return {}
    limits = {reason: n for reason, n in utils.counters["unimplemented"].items() if "limit" in reason.partition("\n")[0]}
    return {"frames": utils.counters["frames"].get("total", 0), "cudagraph_skips": utils.counters["inductor"].get("cudagraph_skips", 0),
            "reasons": {**utils.counters["graph_break"], **limits}}


def _compiled_since(before: dict[str, Any]) -> dict[str, Any]:
    """Since then: `graph_breaks` (one is counted again for every frame around it and every time that it is compiled: whether there are
    any, rather than how many), their `graph_break_reasons` (first lines) and `cudagraph_skips`."""
    now = _counters()
    old = before.get("reasons", {})
    new = {reason: n - old.get(reason, 0) for reason, n in now.get("reasons", {}).items() if n > old.get(reason, 0)}
    return {"graph_breaks": sum(new.values()), "graph_break_reasons": [reason.partition("\n")[0] for reason in new],
            "cudagraph_skips": now.get("cudagraph_skips", 0) - before.get("cudagraph_skips", 0)}


def _sync_lines(variant: VariantStep) -> list[str]:
    """The user's lines at which one step waits for the GPU, as PyTorch reports them."""
    import warnings
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")
            variant.step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return [f"{short(w.filename)}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)]


# ---------------------------------------------------------------- modules and operators

def record(prepared: Prepared, batches: Batches) -> tuple[tuple[ModuleCall, ...], tuple[OpCall, ...]]:
    """The module calls and the operators of one training step. A compiled or captured workload is seen as it is eagerly.

    A call of F.scaled_dot_product_attention is in the list too, before the operators that it ran, with `backend` and `why_not`.
    """
    eager = step.eager(prepared)
    seen = _Seen(eager)
    w = eager.workload
    watched = replace(eager, workload=replace(w, loss=seen.during("loss", w.loss, then="backward"), clip=w.clip and seen.during("clip", w.clip),
                                              after_step=w.after_step and seen.during("after", w.after_step)))
    piped = replace(batches, pipeline=None if batches.pipeline is None else seen.iterating(batches.pipeline))
    with full_step(watched, piped) as variant, seen.hooks():
        seen.reset()
        with seen:
            variant.step()
    return tuple(seen.modules), tuple(seen.ops)


class _Seen(TorchDispatchMode):
    """Records operators while entered, and module calls by hooks."""

    def __init__(self, prepared: Prepared):
        super().__init__()
        self.prepared, self.path = prepared, []
        tensors = {**dict(prepared.model.named_parameters()), **dict(prepared.model.named_buffers())}
        self.names = {(t.data_ptr(), t.numel()): n for n, t in tensors.items() if t.numel()}
        self.reset()

    def reset(self) -> None:
        self.phase, self.modules, self.ops = "zero", [], []

    def during(self, phase: str, function: Callable, then: str = "") -> Callable:
        """`function`, with what it runs counted to this phase, and what follows to `then`."""
        def run(*args, **kwargs):
            before, self.phase = self.phase, phase
            try:
                return function(*args, **kwargs)
            finally:
                self.phase = then or before
        return run

    def iterating(self, pipeline):
        """The pipeline, with what it runs counted to "data"."""
        fetch = self.during("data", lambda: next(pipeline), then="data")
        while True:
            yield fetch()

    @contextlib.contextmanager
    def hooks(self):
        """Watches every module's forward and the optimizer's step."""
        handles = []
        for path, module in self.prepared.model.named_modules():
            handles += [module.register_forward_pre_hook(self._before(path), prepend=True, with_kwargs=True),
                        module.register_forward_hook(self._after, with_kwargs=True, always_call=True)]
        optimizer = self.prepared.optimizer

        def phase(name):
            def hook(*_):
                self.phase = name
            return hook
        handles += [optimizer.register_step_pre_hook(phase("optimizer")), optimizer.register_step_post_hook(phase("after"))]
        attention, F.scaled_dot_product_attention = F.scaled_dot_product_attention, self._attending(F.scaled_dot_product_attention)
        try:
            yield
        finally:
            F.scaled_dot_product_attention = attention
            for handle in handles:
                handle.remove()

    def _attending(self, attention):
        """Attention that is recorded as a call of its own before the operators that it runs: with the backend that PyTorch picks for
        these tensors, and why not the others."""
        def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
            given = (query, key, value, attn_mask, dropout_p, is_causal)
            more = {"enable_gqa": True} if enable_gqa else {}
            with _disable_current_modes():          # the questions are no operators of the step
                args = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa,
                        "backend": backends.ask("attention", *given, **more), "why_not": backends.why_not(*given, enable_gqa)}
            i = len(self.ops)
            self.ops.append(OpCall("scaled_dot_product_attention", self._tensors((query, key, value, attn_mask)), (), args, self.phase,
                                   self.path[-1][0] if self.path else "", user_line()))
            result = attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
            self.ops[i] = replace(self.ops[i], outputs=self._tensors(result))
            return result
        return attend

    def _before(self, path):
        def hook(module, args, kwargs):
            if not self.path:
                self.phase = "forward"
            call = ModuleCall(path, type(module).__name__, self._tensors((args, kwargs)), (),
                              {n: self.tensor(t) for n, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))},
                              module.training, not any(True for _ in module.children()), module,
                              {k: _plain(v) for k, v in vars(module).items() if not k.startswith("_") and _plain(v) is not ...})
            self.path.append((path, len(self.modules)))
            self.modules.append(call)
        return hook

    def _after(self, module, args, kwargs, output):
        if self.path:
            _, i = self.path.pop()
            self.modules[i] = replace(self.modules[i], outputs=self._tensors(output))

    def tensor(self, t: torch.Tensor) -> Tensor:
        """What a tensor looks like, without its data."""
        strides = tuple(t.stride()) if t.layout == torch.strided else ()
        known = ""
        if t.layout == torch.strided and t.numel():
            with contextlib.suppress(RuntimeError):
                known = self.names.get((t.data_ptr(), t.numel()), "")
        return Tensor(tuple(t.shape), str(t.dtype).removeprefix("torch."), strides, t.device.type, known, t.requires_grad)

    def _tensors(self, value) -> tuple[Tensor, ...]:
        if isinstance(value, torch.Tensor):
            return (self.tensor(value),)
        if isinstance(value, dict) or hasattr(value, "items"):
            return tuple(t for v in value.values() for t in self._tensors(v))
        return tuple(t for v in value for t in self._tensors(v)) if isinstance(value, (tuple, list)) else ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = self._tensors((args, kwargs))
        result = function(*args, **kwargs)
        schema = function._schema
        others = {a.name: _plain(v) for a, v in zip(schema.arguments, args)} | {k: _plain(v) for k, v in kwargs.items()}
        self.ops.append(OpCall(schema.name.removeprefix("aten::"), inputs, self._tensors(result),
                               {k: v for k, v in others.items() if v is not ...}, self.phase, self.path[-1][0] if self.path else "", user_line()))
        return result


def _plain(value: Any) -> Any:
    """A JSON-ready copy of a plain value; Ellipsis for anything else (tensors, modules)."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format)):
        return str(value).removeprefix("torch.")
    if isinstance(value, (tuple, list)) and all(isinstance(v, PLAIN) for v in value):
        return list(value)
    return ...


def user_line() -> str:
    """"train.py:31": the innermost frame that belongs neither to torch nor to perfscope; "" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not _foreign(name):
            return f"{short(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _foreign(name: str) -> bool:
    if name.startswith("<") or "/site-packages/" in name or name.startswith((_TORCH, _STDLIB)):
        return True
    return name.startswith(str(PACKAGE)) and not name.startswith(OWN)


_TORCH, _STDLIB = str(Path(torch.__file__).parent), str(Path(contextlib.__file__).parent)


def short(name: str) -> str:
    """A file's path, from the current folder where it is inside it."""
    with contextlib.suppress(ValueError):
        return str(Path(name).resolve().relative_to(Path.cwd()))
    return Path(name).name


# ---------------------------------------------------------------- a layer alone

def alone(a: Callable[[], Any], b: Callable[[], Any], clock: Clock) -> tuple[float, float, stats.Interval]:
    """(seconds of a, seconds of b, ln(b/a)), timed in turns in ALONE_ROUNDS pairs; each is run once before."""
    first = [timed_steps(f, 1, clock) for f in (a, b, a, b)][2:]
    k = max(1, min(1000, int(ALONE_S / (2 * ALONE_ROUNDS * max(max(first), 1e-7)))))
    pairs = []
    for i in range(ALONE_ROUNDS):
        order = (a, b) if i % 2 else (b, a)
        seconds = {f: timed_steps(f, k, clock) for f in order}
        pairs.append((seconds[a], seconds[b]))
    ratio = stats.log_ratio([x for x, _ in pairs], [y for _, y in pairs])
    middle = lambda i: sorted(p[i] for p in pairs)[ALONE_ROUNDS // 2]  # noqa: E731
    return middle(0), middle(1), ratio
