"""The columns of a trace: NumPy arrays, one row per event with a duration. builder.py fills them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from perfscope.warned import Warned

#: Canonical categories; `Events.cat` is an index into this.
CATEGORIES = (
    "other",
    "kernel",
    "gpu_memcpy",
    "gpu_memset",
    "cuda_runtime",
    "cuda_driver",
    "cpu_op",
    "user_annotation",
    "gpu_user_annotation",
    "python_function",
    "overhead",
    "cuda_sync",
)
OTHER, KERNEL, MEMCPY, MEMSET, RUNTIME, DRIVER, CPU_OP, ANNOTATION, GPU_ANNOTATION, PYTHON, OVERHEAD, SYNC = range(12)
# the names that PyTorch has given them since 2021 (libkineto: GenericTraceActivity, output_json.cpp; ROCm and XPU alike)
KNOWN = {
    "operator": CPU_OP,
    "runtime": RUNTIME,
    "memcpy": MEMCPY,
    "memset": MEMSET,
    "concurrent_kernel": KERNEL,
    "privateuse1_runtime": RUNTIME,
    "xpu_runtime": RUNTIME,
    "privateuse1_driver": DRIVER,
    "xpu_driver": DRIVER,
    "hip_runtime": RUNTIME,
    "": CPU_OP,  # no category at all: the Python export
    "user_annotation": ANNOTATION,
    **{c: i for i, c in enumerate(CATEGORIES)},
}
# which arguments of an event are read depends on where it happened
ON_DEVICE, CALLS, ON_HOST = (KERNEL, MEMCPY, MEMSET, GPU_ANNOTATION, SYNC), (RUNTIME, DRIVER), (CPU_OP, ANNOTATION)
#: What the 2021 layout calls an operator, although it is an annotation.
STEP, LOADER = "ProfilerStep#", "enumerate(DataLoader)#"
DATA = "perfscope:data"  # what perfscope's own recorder calls the loading of a batch (record.py)


@dataclass(frozen=True)
class Events:
    """Equally long arrays of integers, one row per event with a duration, in the order of the file. See perfscope.trace.

    Times are int64; the other columns are as narrow as their numbers allow, so widen before multiplying.
    """

    name: np.ndarray
    cat: np.ndarray
    ts_ns: np.ndarray
    dur_ns: np.ndarray
    pid: np.ndarray
    tid: np.ndarray
    device: np.ndarray
    stream: np.ndarray
    correlation: np.ndarray
    external: np.ndarray
    bytes: np.ndarray
    sequence: np.ndarray
    shapes: np.ndarray
    strides: np.ndarray
    dtypes: np.ndarray
    stack: np.ndarray

    def __len__(self) -> int:
        return len(self.name)


COLUMNS = {
    "name": np.int32,
    "cat": np.int8,
    "ts_ns": np.int64,
    "dur_ns": np.int64,
    "pid": np.int32,
    "tid": np.int32,
    "device": np.int32,
    "stream": np.int32,
    "correlation": np.int64,
    "external": np.int64,
    "bytes": np.int64,
    "sequence": np.int64,
    "shapes": np.int32,
    "strides": np.int32,
    "dtypes": np.int32,
    "stack": np.int32,
}
MEMORY = {
    "ts_ns": np.int64,
    "addr": np.int64,
    "bytes": np.int64,
    "device_type": np.int32,
    "device_id": np.int32,
    "allocated": np.int64,
    "reserved": np.int64,
}
COLLECTIVE = {"row": np.int64, "name": np.int32, "group": np.int32, "elements": np.int64}


@dataclass(frozen=True)
class Rank:
    """One file's events: what one process recorded."""

    source: str  # path, or path:member
    path: str
    member: str
    detail: str  # "full", or "summary": no operators, no shapes
    rank: int  # distributedInfo's, else the number in the file's name, else 0
    world: int
    meta: dict[str, Any]  # the file's other keys
    names: list[str]
    ids: list  # process and thread ids as the file has them
    texts: list[str]  # raw JSON of shapes, strides, types, stacks
    events: Events
    memory: dict[str, np.ndarray]  # [memory] events: MEMORY's columns
    collectives: dict[str, np.ndarray]  # arguments of collective kernels: COLLECTIVE's columns; names in `texts`
    blocks: np.ndarray  # int64 [n, 3]: first row, byte offset, length of each block of text
    counts: dict[str, int]  # "events": in the list, "rows", "lost", "repaired", "bytes"
    warnings: tuple[Warned, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What `read` gives: the ranks, and what is odd about them."""

    ranks: tuple[Rank, ...]
    warnings: tuple[Warned, ...] = ()
