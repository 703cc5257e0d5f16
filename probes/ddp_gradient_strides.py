"""Gradients lie in memory in another order than DistributedDataParallel's buckets: every copy between them is strided.

## What it sees
PyTorch's own comparison ("Grad strides do not match bucket view strides"), asked for in a step after DDP has made its final buckets:
each parameter's shape, the strides of its gradient and of its bucket. Differences in dimensions of size 1 are harmless
(the memory order is the same) and are counted, not reported; so is a warning that only the first step gives.

## Why it is slow
Copying a channels_last gradient into a contiguous bucket, and back, reads or writes with gaps, for each parameter and step.

## Cure
Put the model in its final layout *before* it is given to DDP: model.to(memory_format=torch.channels_last), then DDP(model).
Watched with torch 2.13, gloo: converted after DDP, the mismatch stays for good only with find_unused_parameters=True; without
it DDP makes its buckets anew in the second step, with the strides of that moment, and only the first step warns.

## Not for
The warning for 1x1 convolutions: it is spurious, the two strides describe the same order.

## References
SLOW_PATHS S51; torch/csrc/distributed/c10d/reducer.cpp; pytorch/pytorch#47163, #70222.
"""

from perfscope.probe import Config, Evidence, Finding, Place, replace

USES = ("config",)
CODE = "model = model.to(memory_format=torch.channels_last); model = DistributedDataParallel(model)     # in this order"


def detect(evidence):
    c = evidence.config
    rows = c.observed.get("gradient_strides") or []
    real = [r for r in rows if not harmless(r)]
    if not real:
        return
    names = {p.shape: p.parameter for m in evidence.modules or () for p in m.parameters.values() if p.parameter}
    places = tuple(Place(names.get(tuple(r["sizes"])) or f"a parameter of {tuple(r['sizes'])}",
                         f"shape {tuple(r['sizes'])}: gradient strides {tuple(r['grad'])}, bucket strides {tuple(r['bucket'])}") for r in real)
    moved = sum(_numel(r["sizes"]) for r in real)
    yield Finding("", f"{len(real)} gradients lie in memory in another order than their DDP bucket", places,
                  "put the model in its layout before it is given to DDP",
                  evidence={"gradients": len(real), "elements": moved, "harmless": len(rows) - len(real)})


def harmless(row) -> bool:
    """Whether the strides differ only where they mean nothing: in dimensions of size 1."""
    return all(n == 1 or a == b for n, a, b in zip(row["sizes"], row["grad"], row["bucket"]))


def _numel(sizes) -> int:
    n = 1
    for side in sizes:
        n *= side
    return n


def fix(workload):
    return replace(workload, memory_format="channels_last")


def examples():
    """What a model of two convolutions gives that was put in channels_last after DDP; and one of 1x1 convolutions only."""
    def with_(*rows):
        return Evidence(Config(torch="2.13", ddp={"find_unused_parameters": True, "gradient_as_bucket_view": True},
                               observed={"steps": 5, "ranks": 2, "without_gradient": ["spare.weight"], "gradient_strides": list(rows)}))
    ill = with_({"sizes": [16, 16, 3, 3], "grad": [144, 1, 48, 16], "bucket": [144, 9, 3, 1]},
                {"sizes": [16, 8, 3, 3], "grad": [72, 1, 24, 8], "bucket": [72, 9, 3, 1]})
    return ill, with_({"sizes": [16, 16, 1, 1], "grad": [16, 1, 16, 16], "bucket": [16, 1, 1, 1]})
