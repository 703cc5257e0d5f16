"""The same parameters are cast to half or bfloat16 again and again within one step.

## What it sees
Copies of a parameter to another floating type (`_to_copy`), more than one of the same parameter to the same type in the forward
pass and the loss of one step, and at least 2 % of the step's operators too many. What the backward pass casts again
(checkpointing) is left out.

## Why it is slow
Autocast keeps the copy of a parameter until its outermost context is left. A context around each block, each micro-batch or each
time step casts every weight each time: memory traffic, a kernel each, and the backward pass casts each gradient back.
Frozen parameters and cache_enabled=False are never kept.

## Cure
One autocast context around everything that the step runs forward.

## Not for
Layers that have to leave autocast for their precision. A few casts of small parameters.

## References
SLOW_PATHS S20; torch/csrc and aten/src/ATen/autocast_mode.cpp (cached_cast); PyTorch "Automatic Mixed Precision examples".
"""

from contextlib import contextmanager, nullcontext
from functools import partial

from perfscope.probe import Finding, Place, add, replace

USES = ("ops",)
#: The planted contexts are bfloat16 everywhere, which is a disease of its own on processors without instructions for it.
ALSO = ("low_precision_without_hardware",)
CODE = """with torch.autocast(device, torch.bfloat16):        # one, around all blocks, micro-batches or time steps
    for block in self.blocks: x = block(x)"""
TOO_MANY = 0.02             # of the step's operators; measured on the contract's networks: 0 healthy, 4.6 % and 4.9 % with the planted storm
LONGEST = 8                 # places that are named
CHUNKS = 4                  # of the planted forward pass
FLOATS = ("float64", "float32", "float16", "bfloat16")


def detect(evidence):
    casts: dict[tuple[str, str], list] = {}
    for o in evidence.calls("_to_copy"):
        t = o.inputs[0] if o.inputs else None
        if t is not None and t.parameter and o.phase in ("forward", "loss") and t.dtype in FLOATS and o.outputs[0].dtype in FLOATS \
                and o.outputs[0].dtype != t.dtype:
            casts.setdefault((t.parameter, o.outputs[0].dtype), []).append(o)
    again = {k: calls for k, calls in casts.items() if len(calls) > 1}
    extra = sum(len(calls) - 1 for calls in again.values())
    if not extra or extra / len(evidence.ops) < TOO_MANY:
        return
    moved = sum(sum(t.bytes for t in (*o.inputs, *o.outputs)) for calls in again.values() for o in calls[1:])
    most = sorted(again, key=lambda k: -len(again[k]))
    places = tuple(Place(name, f"{len(again[name, kind])} casts to {kind} of {again[name, kind][0].inputs[0].shape} {again[name, kind][0].inputs[0].dtype}"
                         + (f" at {again[name, kind][0].line}" if again[name, kind][0].line else "")) for name, kind in most[:LONGEST])
    yield Finding("", f"{len(again)} parameters are cast {extra} times more than once per step", places,
                  "one autocast context around the whole forward pass", share=evidence.time_share("_to_copy"),
                  basis="ceiling" if evidence.trace is not None else "",
                  evidence={"parameters": len(again), "casts": sum(map(len, again.values())), "too_many": extra, "bytes": moved,
                            "operators": len(evidence.ops)})


@contextmanager
def kept():
    """Autocast's copies of parameters survive its contexts while inside, as within an outer one."""
    import torch
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def fix(workload):
    """What an outer context does, for any type: copies are kept until the optimizer has changed the parameters."""
    import torch

    def forgetful(optimizer):
        optimizer.register_step_post_hook(lambda *_: torch.clear_autocast_cache())
    return add(workload, contexts=[kept], on_optimizer=[forgetful])


def chunked(model, around):
    """The forward pass in chunks of the batch, each in an autocast context of its own, all in around(device)."""
    import torch
    whole = model.forward

    def forward(x):
        out = []
        with around(x.device.type):
            for part in x.chunk(CHUNKS):
                with autocast(x.device.type):
                    out.append(whole(part))
            return torch.cat(out)
    model.forward = forward


def autocast(device):
    import torch
    return torch.autocast(device, torch.bfloat16)


def healthy(workload):
    """The same chunks, and one autocast context around them all."""
    return add(replace(workload, dtype="float32"), on_model=[partial(chunked, around=autocast)])


def plant(workload):
    """The forward pass in chunks of the batch, each in an autocast context of its own."""
    return add(replace(workload, dtype="float32"), on_model=[partial(chunked, around=nullcontext)])
