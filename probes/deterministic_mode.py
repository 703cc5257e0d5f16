"""Deterministic mode is on: slower algorithms, and every new tensor is filled.

## What it sees
torch.use_deterministic_algorithms(True), or, on a GPU, torch.backends.cudnn.deterministic = True.

## Why it is slow
cuDNN may use only algorithms that add in a fixed order; index_put_, scatter_add_ and the backward passes of embeddings and of
interpolation sort their indices or run one thread; and torch.utils.deterministic.fill_uninitialized_memory, on by default
in this mode, writes NaN into every torch.empty before it is used.

## Cure
Off while speed counts. What reproducibility costs here is what `fix` measures.

## Not for
Runs that have to be reproducible to the bit. Where only the fills cost: torch.utils.deterministic.fill_uninitialized_memory = False
keeps the rest.

## References
SLOW_PATHS S16; PyTorch "Reproducibility"; torch.use_deterministic_algorithms.
"""

from contextlib import contextmanager

from perfscope.probe import Finding, Place, add

USES = ("config",)
CODE = """torch.use_deterministic_algorithms(False)
torch.backends.cudnn.deterministic = False"""
#: Operators that run otherwise in this mode (the list in the documentation of torch.use_deterministic_algorithms)
OTHERWISE = ("index_put", "index_put_", "_index_put_impl_", "index_add", "index_add_", "index_copy", "index_copy_", "scatter", "scatter_", "scatter_add",
             "scatter_add_", "scatter_reduce", "embedding_dense_backward", "cumsum", "put_", "index_select_backward", "gather_backward",
             "convolution", "convolution_backward", "upsample_bilinear2d_backward", "upsample_nearest2d_backward", "median", "bincount")
NEW = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted")
GPU_ONLY = ("convolution", "convolution_backward")


def detect(evidence):
    c = evidence.config
    algorithms, cudnn = c.switches.get("deterministic_algorithms") is True, c.switches.get("cudnn.deterministic") is True and c.device == "cuda"
    if not algorithms and not cudnn:
        return
    names = [o.name for o in evidence.ops or () if o.name in OTHERWISE and (c.device == "cuda" or o.name not in GPU_ONLY)]
    filled = sum(t.bytes for o in evidence.calls(*NEW) for t in o.outputs) if algorithms else 0
    saw = f"{len(names)} operators of the step run otherwise because of it: {', '.join(dict.fromkeys(names))}" if names else "it is on"
    saw += f"; {filled} bytes of new tensors are filled" if filled else ""
    workspace = c.variables.get("CUBLAS_WORKSPACE_CONFIG")
    places = (Place("torch.use_deterministic_algorithms", saw),) if algorithms else ()
    places += (Place("torch.backends.cudnn.deterministic", saw if not algorithms else "True"),) if cudnn else ()
    places += (Place("CUBLAS_WORKSPACE_CONFIG", workspace),) if workspace else ()
    yield Finding("", "deterministic mode is on: reproducible to the bit, with slower algorithms", places, "switch it off for speed runs",
                  evidence={"operators": len(names), "filled_bytes": filled, "deterministic_algorithms": algorithms, "cudnn.deterministic": cudnn})


def mode(on: bool):
    """A context with deterministic mode on or off; behind it, it is what it was."""
    @contextmanager
    def context():
        import torch
        cudnn = torch.backends.cudnn
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), cudnn.deterministic
        try:
            torch.use_deterministic_algorithms(on, warn_only=True)
            cudnn.deterministic = on
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.deterministic = before[2]
    return context


def fix(workload):
    return add(workload, contexts=[mode(False)])


def plant(workload):
    return add(workload, contexts=[mode(True)])
