"""A Python loop over the parameters runs at every step: averaged weights, decay or logging by hand.

## What it sees
After the optimizer, at least as many small operators (lerp_, mul_, add_, copy_, ...) on tensors of the parameters' shapes as the
model has parameters, none of them `_foreach_*`; with the line of your source.

## Why it is slow
Each is a launch for the host and the device, however small the tensor: with a few hundred parameters, hundreds of launches per
step. On one core here, averaging 60 tensors of 16 to 2 304 numbers took 243 us with mul_ and add_, 91 us with lerp_ and 35 us
with one torch._foreach_lerp_.

## Cure
torch._foreach_lerp_(averages, parameters, 1 - decay): one call for all. torch.optim.swa_utils.get_ema_multi_avg_fn does it. Every
k steps instead of at every step. It is a hint: the loop is yours.

## Not for
Loops over a handful of tensors, or ones that run once in a hundred steps.

## References
SLOW_PATHS S32, S33; torch.optim.swa_utils in PyTorch's documentation.
"""

import torch

from perfscope.probe import Finding, Place, add

USES = ("ops",)             # and the modules, which come with them
CODE = "torch._foreach_lerp_(averages, list(model.parameters()), 1 - decay)"
FEW = 8                     # parameters: a loop over fewer is not worth a word
SMALL = {"mul_", "add_", "sub_", "lerp_", "copy_", "addcmul_", "addcdiv_", "div_", "mul", "add", "sub", "lerp", "norm", "linalg_vector_norm", "clone"}


def detect(evidence):
    ops = evidence.ops or ()
    parameters = {f"{m.path}.{name}": t.shape for m in evidence.modules or () for name, t in m.parameters.items() if t.requires_grad}
    shapes = set(parameters.values())
    loops: dict[str, list] = {}
    for o in ops:
        if o.phase == "after" and o.name in SMALL and o.inputs and o.inputs[0].shape in shapes and o.inputs[0].shape:
            loops.setdefault(o.line, []).append(o)
    total = sum(map(len, loops.values()))
    if len(parameters) < FEW or total < len(parameters):
        return
    places = tuple(Place(line or "after_step", f"{len(some)} x {', '.join(sorted({o.name for o in some}))}") for line, some in loops.items())
    yield Finding("", f"a loop over the parameters runs {total} operators after every step", places, "one torch._foreach_* call for all parameters",
                  evidence={"operators": total, "parameters": len(parameters)})


class Averaging:
    """Averages of a model's weights, kept by a loop."""

    def start(self, model):
        """Called with the model once it is where it will be trained."""
        self.parameters = list(model.parameters())
        self.averages = [p.detach().clone() for p in self.parameters]

    def __call__(self, loss):
        with torch.no_grad():
            for average, parameter in zip(self.averages, self.parameters):
                average.lerp_(parameter, 0.001)


def plant(workload):
    averaging = Averaging()
    return add(workload, on_model=[averaging.start], after_step=averaging)
