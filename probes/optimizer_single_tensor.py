"""The optimizer goes through the parameters one by one: several small operators for each.

## What it sees
An optimizer's step that runs at least one plain operator (mul_, lerp_, addcdiv_, ...) per parameter, none of them `_foreach_*`
or `_fused_*`, where that is not the default's doing alone: foreach=False was asked for, or the class has no fused version
(RMSprop, NAdam, Adadelta, ...), or the optimizer is hand-made. (Adam, AdamW, SGD and Adagrad with their defaults are the probe
optimizer_not_fused.)

## Why it is slow
Each operator costs its launch, on the host and on a GPU, however small the parameter is: ten times a hundred parameters are a
thousand launches. foreach=True is the default on a GPU, but not on a CPU, although it helps there too: RMSprop over 60
parameters of 16 to 2 304 numbers took 949 us, and 520 us with foreach=True (one core, torch 2.13).

## Cure
fused=True where the class has it, else foreach=True.

## Not for
differentiable=True, which needs the loop; large parameters on a CPU, where it makes no difference; a GPU that is nearly full:
foreach needs a copy's worth of memory for its intermediate results.

## References
SLOW_PATHS S28; torch/optim/optimizer.py `_default_to_fused_or_foreach`.
"""

import inspect

from perfscope import patch
from perfscope.probe import Finding, Place, add

USES = ("ops",)
CODE = "torch.optim.RMSprop(..., foreach=True)          # Adam, AdamW, SGD, Adagrad: fused=True"
FEW = 2                     # parameters: a loop over fewer is none


def detect(evidence):
    c = evidence.config
    steps = [o for o in evidence.ops or () if o.phase == "optimizer" and "::" not in o.name]
    if any(o.name.startswith(("_foreach_", "_fused_")) for o in steps):
        return
    touched = {t.parameter for o in steps for t in o.inputs if t.parameter}
    if len(touched) < FEW or len(steps) < len(touched):
        return
    options = c.optimizer_options
    if options.get("foreach") is not False and "fused" in options:
        return
    hand_made = "foreach" not in options
    why = ("differentiable=True" if options.get("differentiable") else "foreach=False was asked for" if options.get("foreach") is False
           else "it has neither foreach nor fused" if hand_made else f"foreach is not the default on {c.device}, and {c.optimizer} has no fused version")
    yield Finding("", f"the optimizer goes through {len(touched)} parameters one by one", (Place(
        "optimizer", f"{c.optimizer} ran {len(steps)} operators in its step, {len(steps) / len(touched):.0f} per parameter: {why}"),),
        "rewrite its loop with torch._foreach_*" if hand_made else "make the optimizer with fused=True where it has it, else foreach=True",
        share=evidence.time_share(*_own(evidence, steps)), basis="ceiling" if evidence.trace is not None else "",
        evidence={"operators": len(steps), "parameters": len(touched), "optimizer": c.optimizer},
        extra={"hint": True} if hand_made or options.get("differentiable") else {})


def _own(evidence, steps) -> set[str]:
    """The operators that only the optimizer runs, so that their time is its."""
    return {o.name for o in steps} - {o.name for o in evidence.ops if o.phase not in ("optimizer", "data")}


def remade(optimizer, **options):
    """The same optimizer, made anew with these options; ValueError if its class does not have them."""
    kind, known = type(optimizer), inspect.signature(type(optimizer).__init__).parameters
    missing = [o for o in options if o not in known]
    if missing:
        raise ValueError(f"{kind.__name__} has no {missing[0]}")
    groups = [{k: v for k, v in g.items() if k not in ("fused", "foreach")} for g in optimizer.param_groups]
    kept = {k: v for k, v in optimizer.defaults.items() if k in known and k not in ("fused", "foreach")}
    return kind(groups, **kept, **options)


def foreach(optimizer):
    """With foreach=True."""
    return remade(optimizer, foreach=True)


def fused(optimizer):
    """With fused=True."""
    return remade(optimizer, fused=True)


def one_by_one(optimizer):
    """With foreach=False."""
    return remade(optimizer, foreach=False)


CURES = {"fused": lambda workload: add(workload, on_optimizer=[fused]), "foreach": lambda workload: add(workload, on_optimizer=[foreach])}


def edit(source):
    return patch.optimizer_keyword(source, "fused", "True")


def plant(workload):
    return add(workload, on_optimizer=[one_by_one])
