"""What a DistributedDataParallel step shows: gradients whose memory order differs from their bucket's, parameters without gradients."""

from __future__ import annotations

import re
import warnings
from typing import Any, Callable

import torch

#: PyTorch's warning (torch/csrc/distributed/c10d/reducer.cpp), once per process unless told otherwise.
MISMATCH = re.compile(r"Grad strides do not match bucket view strides.*?grad\.sizes\(\) = \[([\d, ]*)\], strides\(\) = \[([\d, ]*)\]"
                      r".*?bucket_view\.sizes\(\) = \[[\d, ]*\], strides\(\) = \[([\d, ]*)\]", re.S)


def gradient_strides(step: Callable[[], Any]) -> list[dict[str, list[int]]]:
    """The gradients of one step that do not lie in memory as their bucket does: `sizes`, `grad` and `bucket` (strides), as PyTorch reports them.

    Run it on a step that has run twice before: DDP makes its buckets anew, with the strides of that moment, in its second step.
    """
    before = torch.is_warn_always_enabled()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            torch.set_warn_always(True)
            step()
        finally:
            torch.set_warn_always(before)
    return [dict(zip(("sizes", "grad", "bucket"), ([int(n) for n in part.split(",")] if part else [] for part in found.groups())))
            for found in (MISMATCH.search(str(w.message)) for w in seen) if found]


def without_gradient(model: torch.nn.Module) -> list[str]:
    """The parameters that want a gradient and have none."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def seen(prepared, step: Callable[[], Any]) -> dict[str, Any]:
    """For Config.observed, of a step that has run: `without_gradient`; where there are several ranks also `ranks` and `gradient_strides`."""
    found: dict[str, Any] = {"without_gradient": without_gradient(prepared.model)}
    if prepared.distributed is not None:
        found |= {"ranks": torch.distributed.get_world_size(), "gradient_strides": gradient_strides(step)}
    return found
