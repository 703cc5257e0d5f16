"""zero_grad(set_to_none=False) writes zeros into every gradient at every step.

## What it sees
The optimizer's zero_grad is called with set_to_none=False: one fill per parameter before the forward pass.

## Why it is slow
The zeros are written, then read again, because the backward pass adds to them instead of storing its result. It costs two
passes over all gradients and, on a GPU, a kernel or more per step.

## Cure
zero_grad() without arguments: None has been the default since torch 2.0.

## Not for
Code that reads .grad between zero_grad and backward, or that keeps views of the gradients.

## References
SLOW_PATHS S30; torch.optim.Optimizer.zero_grad in PyTorch's documentation.
"""

from perfscope.probe import Finding, Place, replace

USES = ("config",)
CODE = "optimizer.zero_grad()          # set_to_none=True is the default"


def detect(evidence):
    if evidence.config.set_to_none:
        return
    zeros = list(evidence.calls("zero_", "_foreach_zero_", phase="zero"))
    count = sum(len(o.inputs) for o in zeros)
    moved = sum(t.bytes for o in zeros for t in o.inputs)
    saw = f"{count} gradients, {moved / 1e6:.1f} MB, are filled with zeros" if zeros else "set_to_none is False"
    yield Finding("", "zero_grad fills the gradients with zeros instead of dropping them", (Place("optimizer.zero_grad", saw),),
                  "call zero_grad() without set_to_none=False", evidence={"gradients": count, "bytes": moved})


def fix(workload):
    return replace(workload, set_to_none=True)


def plant(workload):
    return replace(workload, set_to_none=False)
