"""DistributedDataParallel looks for unused parameters in every step, and there are none.

## What it sees
find_unused_parameters=True, while every parameter that wants a gradient had one after each of the steps that were watched.

## Why it is slow
Before each backward pass DDP walks the whole autograd graph on the host to find parameters that will get no gradient. And it
never makes its buckets anew in the order in which gradients arrive, so communication starts later.

## Cure
Leave find_unused_parameters out. If some steps really leave parameters without a gradient, and always the same: static_graph=True.

## Not for
Models whose control flow changes from step to step (mixtures of experts, layer dropping): what was watched need not hold later,
and without the flag DDP then stops with an error.

## References
SLOW_PATHS S52; PyTorch's own warning in torch/csrc/distributed/c10d/reducer.cpp ("did not find any unused parameters"); pytorch/pytorch
reducer.cpp, Reducer::should_rebuild_buckets.
"""

from perfscope.probe import Finding, Place, replace

USES = ("config",)
CODE = "DistributedDataParallel(model)      # find_unused_parameters=False is the default"


def detect(evidence):
    c = evidence.config
    if not (c.ddp or {}).get("find_unused_parameters") or c.ddp.get("static_graph") or c.observed.get("without_gradient", ["not known"]):
        return
    ranks = c.observed.get("ranks")
    yield Finding("", "DDP looks for unused parameters in every step, and there are none",
                  (Place("DistributedDataParallel", f"find_unused_parameters=True; no parameter was without a gradient in {c.observed.get('steps')} steps"),),
                  "leave find_unused_parameters=True out", **({} if ranks else {"extra": {"hint": True},
                                                              "note": "not tried here: there is one process, and no DDP in it"}))


def fix(workload):
    return replace(workload, ddp={**workload.ddp, "find_unused_parameters": False})


def plant(workload):
    return replace(workload, ddp={**workload.ddp, "find_unused_parameters": True, "gradient_as_bucket_view": True})
