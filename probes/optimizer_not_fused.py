"""The optimizer is not fused: several passes over every parameter instead of one.

## What it sees
An optimizer whose class knows fused=True (Adam, AdamW, SGD, Adagrad) and which was made without it, and the operators that its
step ran. In a trace: `_foreach_addcmul_` and `_foreach_addcdiv_`, which is Adam's step, and no `_fused_*`. (foreach=False, and
classes that have no fused version, are the probe optimizer_single_tensor.)

## Why it is slow
Each operator reads and writes all parameters, gradients and states once. Fused, one pass does it all; on a GPU it is one
kernel instead of a dozen, and a GradScaler needs no synchronisation. On a CPU AdamW over 60 parameters of 16 to 2 304 numbers
took 1 538 us by its default, 246 us fused; over 20 of 65 536, 3 086 us and 863 us (one core, torch 2.13).

## Cure
fused=True.

## Not for
Optimizers that have no fused version, parameters that are not floating point, tensor subclasses, differentiable=True.

## References
SLOW_PATHS S29; `torch.optim` documentation, "fused"; torch/optim/optimizer.py `_default_to_fused_or_foreach`.
"""

import inspect

from perfscope import patch
from perfscope.probe import Finding, Place, add

USES = ("config", "trace")
CODE = "torch.optim.Adam(..., fused=True)"
ADAM = {"_foreach_addcmul_", "_foreach_addcdiv_"}        # what its step consists of, and few others' besides


def detect(evidence):
    if not evidence.config.optimizer:
        yield from _in_trace(evidence)
        return
    c, options = evidence.config, evidence.config.optimizer_options
    if "fused" not in options or options["fused"] or options.get("foreach") is False or options.get("differentiable"):
        return
    steps = [o for o in evidence.ops or () if o.phase == "optimizer" and "::" not in o.name]
    if any("_fused_" in o.name for o in steps):
        return
    saw = f"{c.optimizer} ran {len(steps)} operators in its step" if steps else f"{c.optimizer} was made without fused=True"
    own = {o.name for o in steps} - {o.name for o in evidence.ops or () if o.phase not in ("optimizer", "data")}
    yield _finding(evidence, saw, own, {"operators": len(steps), "optimizer": c.optimizer})


def _in_trace(evidence):
    """The optimizer of somebody else's trace: known by its operators only."""
    rows = evidence.trace.ops if evidence.trace is not None else ()
    names = {r.name.removeprefix("aten::") for r in rows}
    if ADAM <= names and not any("_fused_" in n for n in names):
        own = {n for n in names if n.startswith("_foreach_")}
        count = sum(r.count for r in rows if r.name.removeprefix("aten::") in own)
        yield _finding(evidence, f"{count} calls of {', '.join(sorted(own))}", own, {"operators": count})


def _finding(evidence, saw, own, seen):
    share = evidence.time_share(*own)
    return Finding("", "the optimizer's step is not fused: it goes over every parameter and state several times", (Place("optimizer", saw),),
                   "make the optimizer with fused=True", share=share, basis="ceiling" if share is not None else "", evidence=seen)


def fused(optimizer):
    """The same optimizer, made anew with fused=True; ValueError if its class has no fused version."""
    if "fused" not in inspect.signature(type(optimizer).__init__).parameters:
        raise ValueError(f"{type(optimizer).__name__} has no fused version")
    return _remade(optimizer, True)


def unfused(optimizer):
    """The same optimizer with fused=False."""
    return _remade(optimizer, False)


def _remade(optimizer, value):
    known = inspect.signature(type(optimizer).__init__).parameters
    groups = [{k: v for k, v in g.items() if k not in ("fused", "foreach")} for g in optimizer.param_groups]
    options = {k: v for k, v in optimizer.defaults.items() if k in known and k not in ("fused", "foreach")}
    return type(optimizer)(groups, **options, fused=value)


def fix(workload):
    return add(workload, on_optimizer=[fused])


def edit(source):
    return patch.optimizer_keyword(source, "fused", "True")


def plant(workload):
    return add(workload, on_optimizer=[unfused])
