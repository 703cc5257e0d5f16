"""What can be known of an input pipeline without running it: the DataLoader behind it, its workers, its bytes; and its speed."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import DataLoader

from perfscope.workload.data import tensors
from perfscope.workload.step import Batches
from perfscope.workload.workload import Workload

TIMED_BATCHES = 3
WAITING = 0.1       # of the time of fetching: a thread that computes less than this in it waits for somebody else, even on a busy machine


def find(value: Any, depth: int = 4) -> DataLoader | None:
    """The DataLoader behind an iterator: itself, its `loader`, or one that its generator holds."""
    if isinstance(value, DataLoader):
        return value
    if depth == 0:
        return None
    if isinstance(held := getattr(value, "loader", None), DataLoader):
        return held
    inside = list(getattr(getattr(value, "gi_frame", None), "f_locals", {}).values())
    inside += [c.cell_contents for c in getattr(value, "__closure__", None) or () if c.cell_contents is not value]
    return next((f for f in (find(v, depth - 1) for v in inside) if f is not None), None)


def facts(workload: Workload, batches: Batches) -> dict[str, Any]:
    """{} without a pipeline. `batch_s` (seconds that fetching one takes, here and now), `batch_bytes`, `pinned`, `device` of its
    tensors; `shapes`: how many different shapes the `batches` that were fetched had; `in_process`: whether the training thread itself
    loads; of a DataLoader `workers`, `pin_memory`, `persistent`, `prefetch`, `dataset` (its class), `samples` (its length) and `dataset_bytes` (if tensors)."""
    if workload.data is None or batches.pipeline is None:
        return {}
    pair, seconds, shapes, own = None, [], set(), time.thread_time()
    for _ in range(TIMED_BATCHES):
        begin = time.perf_counter()
        pair = next(batches.pipeline)
        seconds.append(time.perf_counter() - begin)
        shapes.add(tuple(tuple(t.shape) for t in tensors(pair)))
    own = time.thread_time() - own
    found = list(tensors(pair))
    behind = find(batches.pipeline)
    computes = behind.num_workers == 0 if behind is not None else own >= WAITING * sum(seconds)
    known = {"in_process": getattr(batches.pipeline, "in_process", computes),
             "batch_s": sorted(seconds)[len(seconds) // 2], "batch_bytes": sum(t.numel() * t.element_size() for t in found),
             "batches": TIMED_BATCHES, "shapes": len(shapes),
             "pinned": bool(found) and torch.cuda.is_available() and all(t.is_pinned() for t in found),
             "device": found[0].device.type if found else ""}
    loader = behind or find(workload.data)
    if loader is None:
        return known
    held = getattr(loader.dataset, "tensors", None)
    return known | {"workers": loader.num_workers, "pin_memory": loader.pin_memory, "persistent": loader.persistent_workers,
                    "prefetch": loader.prefetch_factor, "dataset": type(loader.dataset).__name__, "samples": _length(loader.dataset),
                    **({"dataset_bytes": sum(t.numel() * t.element_size() for t in held)} if held else {})}


def _length(dataset) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None
