"""A debugging aid was left on: anomaly mode, blocking launches, a profiler, python -X dev, sync warnings, hooks everywhere.

## What it sees
Torch's anomaly mode and sync-debug mode as they are within the step, a profiler that is running, Python's development mode, the
environment variables CUDA_LAUNCH_BLOCKING, TORCH_DISTRIBUTED_DEBUG=DETAIL (with several ranks) and NCCL_DEBUG=TRACE, and forward
or backward hooks on at least half of the model's leaf modules.

## Why it is slow
Anomaly mode records a stack for every operator and checks every gradient for nan; blocking launches wait for each kernel;
DETAIL checks every collective with one more; a hook runs Python between any two layers, and on a GPU often reads a value.

## Cure
Switch it off. `perfscope fix` does that for anomaly mode, which can be switched within the process; variables have to be unset
before it starts.

## Not for
A run that hunts a bug. Hooks that belong to the method (pruning, weight norm, activation checkpointing by hand) are named, but
nothing says that they should go.

## References
SLOW_PATHS S41; torch.autograd.set_detect_anomaly, torch.cuda.set_sync_debug_mode and "CUDA environment variables" in PyTorch's documentation.
"""

from functools import partial

import torch

from perfscope.probe import Finding, Place, add

USES = ("config", "model")
CODE = "torch.autograd.set_detect_anomaly(False)"
HOOKED = 0.5                # of the leaf modules: fewer are someone's feature extractor
FEW = 8                     # hooks: fewer cost nothing that could be seen


def detect(evidence):
    c = evidence.config
    if c.switches.get("anomaly"):
        yield Finding("", "anomaly mode is on: a stack for every operator, a check for nan of every gradient", (Place(
            "torch.autograd.set_detect_anomaly", "torch.is_anomaly_enabled() is True within the step"),), "switch it off")
    others = [*_switches(c), *_variables(c)]
    if others:
        yield Finding("", f"{len(others)} debugging aid{'s are' if len(others) > 1 else ' is'} on: {', '.join(p.where for p in others)}", tuple(others),
                      "switch it off before the process starts", "env -u CUDA_LAUNCH_BLOCKING -u TORCH_DISTRIBUTED_DEBUG python train.py",
                      extra={"hint": True})
    yield from _hooks(evidence.modules or ())


def _switches(c):
    if c.switches.get("profiler"):
        yield Place("torch.profiler", "a profiler is running within the step")
    if c.switches.get("dev_mode"):
        yield Place("python -X dev", "Python's development mode: debug allocator, every warning")
    if c.switches.get("sync_debug"):
        yield Place("torch.cuda.set_sync_debug_mode", f"mode {c.switches['sync_debug']}: every synchronisation warns")


def _variables(c):
    if c.device == "cuda" and c.variables.get("CUDA_LAUNCH_BLOCKING") not in (None, "", "0"):
        yield Place("CUDA_LAUNCH_BLOCKING", "the host waits for every kernel")
    if c.ddp is not None and c.variables.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        yield Place("TORCH_DISTRIBUTED_DEBUG", "DETAIL: every collective is checked by another one")
    if c.variables.get("NCCL_DEBUG", "").upper() == "TRACE":
        yield Place("NCCL_DEBUG", "TRACE: every call is logged")


def _hooks(modules):
    leaves = {m.path: m for m in modules if m.leaf and m.module is not None}
    hooked = {path: m for path, m in leaves.items() if _count(m.module)}
    count = sum(_count(m.module) for m in hooked.values())
    if count < FEW or len(hooked) < HOOKED * len(leaves):
        return
    names = sorted({_name(h) for m in hooked.values() for h in (*m.module._forward_hooks.values(), *m.module._backward_hooks.values())})
    yield Finding("", f"{count} hooks on {len(hooked)} of {len(leaves)} leaf modules run at every step",
                  (Place("forward and backward hooks", ", ".join(names)),), "remove hooks that are only there to look",
                  "handle = module.register_forward_hook(...); handle.remove()",
                  evidence={"hooks": count, "modules": len(hooked)}, extra={"hint": True})


def _count(module) -> int:
    return len(module._forward_hooks) + len(module._backward_hooks)


def _name(hook) -> str:
    inner = getattr(hook, "func", hook)
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__name__)}".lstrip(".")


#: A context: constructing it switches, leaving it restores.
quiet = partial(torch.autograd.set_detect_anomaly, False)
watching = partial(torch.autograd.set_detect_anomaly, True)


def fix(workload):
    return add(workload, contexts=[quiet])


def plant(workload):
    return add(workload, contexts=[watching])
