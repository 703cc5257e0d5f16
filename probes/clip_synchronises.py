"""Gradient clipping waits for the GPU, or goes through the gradients one by one.

## What it sees
Between the backward pass and the optimizer, on a GPU: a value read by the host (`_local_scalar_dense`: error_if_nonfinite=True,
`float(norm)`, `if norm > 1`), and norms that are taken gradient by gradient instead of by one `_foreach_norm` (foreach=False, or
a loop of one's own).

## Why it is slow
To read one number the host waits until the whole backward pass has been computed; only then can it launch the optimizer's
kernels, and the GPU idles meanwhile. A loop launches two small kernels per parameter, and waits each time if it reads them.

## Cure
torch.nn.utils.clip_grad_norm_ as it comes: it never leaves the GPU, and uses foreach there. Log the norm it returns every k
steps. `perfscope fix` does this if the clipping is torch's own in a functools.partial; clipping of your own is a hint.

## Not for
A CPU, where nothing is waited for. Code that has to stop at the first infinite gradient: check every k steps instead.

## References
SLOW_PATHS S31; pytorch/pytorch#60691, #61042; torch/nn/utils/clip_grad.py.
"""

from functools import partial

import torch

from perfscope.probe import Config, Evidence, Finding, OpCall, Place, Tensor, replace

USES = ("ops",)
DEVICES = ("cuda",)
CODE = "norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)      # a tensor: do not read it at every step"
NORMS = ("linalg_vector_norm", "norm")
FEW = 4                     # norms of single gradients that are no loop yet


def detect(evidence):
    clip = [o for o in evidence.ops or () if o.phase == "clip"]
    reads = [o for o in clip if reads_device(o)]
    norms = [o for o in clip if o.name in NORMS and o.inputs and o.inputs[0].device == "cuda"]
    loop = norms if len(norms) > FEW and not any(o.name == "_foreach_norm" for o in clip) else []
    if not reads and not loop:
        return
    places = [Place(f"{name} at {line}" if line else name, f"read {n} times per step") for (name, line), n in _counted(reads).items()]
    places += [Place(f"{name} at {line}" if line else name, f"{n} gradients one by one") for (name, line), n in _counted(loop).items()]
    what = " and ".join([f"waits for the GPU {len(reads)} times per step"] * bool(reads) + [f"takes {len(loop)} norms one by one"] * bool(loop))
    own = torchs_own(getattr(evidence.workload, "clip", None))
    asked = {k: v for k, v in getattr(evidence.workload.clip, "keywords", {}).items() if k in ("error_if_nonfinite", "foreach")} if own else {}
    yield Finding("", f"gradient clipping {what}", tuple(places), "use clip_grad_norm_ without error_if_nonfinite and foreach=False, do not read the norm",
                  evidence={"reads": len(reads), "norms": len(loop), "asked": asked}, extra={} if own else {"hint": True})


def reads_device(o) -> bool:
    """Whether this operator makes the host wait for a value on the device."""
    return o.name in ("_local_scalar_dense", "equal", "nonzero") and bool(o.inputs) and o.inputs[0].device == "cuda" \
        or o.name == "_to_copy" and bool(o.inputs) and o.inputs[0].device == "cuda" and o.outputs[0].device == "cpu" and not o.args.get("non_blocking")


def _counted(ops) -> dict:
    found: dict = {}
    for o in ops:
        found[o.name, o.line] = found.get((o.name, o.line), 0) + 1
    return found


def torchs_own(clip) -> bool:
    """Whether this is clip_grad_norm_ or a partial of it."""
    return getattr(clip, "func", clip) is torch.nn.utils.clip_grad_norm_


def fix(workload):
    if workload.clip is None:
        return workload
    if not torchs_own(workload.clip):
        raise ValueError("the clipping is your own function: use torch.nn.utils.clip_grad_norm_")
    given = getattr(workload.clip, "keywords", {})
    kept = {k: v for k, v in given.items() if k not in ("error_if_nonfinite", "foreach")}
    return replace(workload, clip=partial(torch.nn.utils.clip_grad_norm_, *getattr(workload.clip, "args", ()), **kept))


def plant(workload):
    # a norm that no gradient reaches: they stay what they are, bit for bit
    return replace(workload, clip=partial(torch.nn.utils.clip_grad_norm_, max_norm=1e30, error_if_nonfinite=True, foreach=False))


def examples():
    """What clip_grad_norm_(error_if_nonfinite=True, foreach=False) runs, and what it runs by its defaults, over 12 gradients."""
    grads = [Tensor((64, 64), "float32", (64, 1), "cuda") for _ in range(12)]
    norm, flag = Tensor((), "float32", (), "cuda"), Tensor((), "bool", (), "cuda")
    call = lambda name, inputs, outputs: OpCall(name, tuple(inputs), tuple(outputs), phase="clip", line="train.py:41")  # noqa: E731
    one_by_one = [call("linalg_vector_norm", [g], [norm]) for g in grads]
    checked = [call("isnan", [norm], [flag]), call("isinf", [norm], [flag]), call("logical_or", [flag, flag], [flag]), call("_local_scalar_dense", [flag], [])]
    scaled = [call("mul_", [g, norm], [g]) for g in grads]
    together = [call("_foreach_norm", grads, [norm] * 12), call("stack", [norm] * 12, [Tensor((12,), "float32", (1,), "cuda")]),
                call("linalg_vector_norm", [Tensor((12,), "float32", (1,), "cuda")], [norm]), call("_foreach_mul_", [*grads, norm], [])]
    config = Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0")
    return Evidence(config, (), (*one_by_one, *checked, *scaled)), Evidence(config, (), tuple(together))
