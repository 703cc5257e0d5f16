"""The optimizer is not fused: several passes over every parameter instead of one.

## What it sees
An optimizer whose class knows fused=True (Adam, AdamW, SGD, Adagrad, ...) and which was made without it, and the operators
that its step ran: `_foreach_*`, or one small operator after the other per parameter.

## Why it is slow
Each operator reads and writes all parameters, gradients and states once. Fused, one pass does it all; on a GPU it is one
kernel instead of a dozen, and a GradScaler needs no synchronisation.

## Cure
fused=True.

## Not for
Optimizers that have no fused version, parameters that are not floating point, tensor subclasses.

## References
SLOW_PATHS S28, S29; `torch.optim` documentation, "fused"; torch/optim/optimizer.py `_default_to_fused_or_foreach`.
"""

import inspect

from perfscope.probe import Finding, Place, add

USES = ("config",)
CODE = "torch.optim.Adam(..., fused=True)"


def detect(evidence):
    c = evidence.config
    if c.optimizer_options.get("fused") is not False and c.optimizer_options.get("fused") is not None or "fused" not in c.optimizer_options:
        return
    steps = [o for o in evidence.ops or () if o.phase == "optimizer"]
    if any("_fused_" in o.name for o in steps):
        return
    saw = f"{c.optimizer} ran {len(steps)} operators in its step" if steps else f"{c.optimizer} was made without fused=True"
    yield Finding("", "the optimizer's step is not fused: it goes over every parameter and state several times",
                  (Place("optimizer", saw),), "make the optimizer with fused=True",
                  evidence={"operators": len(steps), "optimizer": c.optimizer})


def fused(optimizer):
    """The same optimizer, made anew with fused=True; ValueError if its class has no fused version."""
    kind = type(optimizer)
    if "fused" not in inspect.signature(kind.__init__).parameters:
        raise ValueError(f"{kind.__name__} has no fused version")
    groups = [{k: v for k, v in g.items() if k not in ("fused", "foreach")} for g in optimizer.param_groups]
    options = {k: v for k, v in optimizer.defaults.items() if k in inspect.signature(kind.__init__).parameters}
    return kind(groups, **{**options, "fused": True, "foreach": None})


def unfused(optimizer):
    """The same optimizer with fused=False."""
    kind = type(optimizer)
    groups = [{k: v for k, v in g.items() if k not in ("fused", "foreach")} for g in optimizer.param_groups]
    options = {k: v for k, v in optimizer.defaults.items() if k in inspect.signature(kind.__init__).parameters}
    return kind(groups, **{**options, "fused": False})


def fix(workload):
    return add(workload, on_optimizer=[fused])


def plant(workload):
    return add(workload, on_optimizer=[unfused])
