"""Tensor cores: which matmul, convolution and attention kernels use them, and which of the others could. Integer nanoseconds.

used        the kernel's name says so (names.TENSOR_CORES)
eligible    it does not, and the GPU multiplies the recorded type of the operator's first input on tensor cores:
            float16 and int8 from Volta (compute capability 7), bfloat16 and float32 (as TF32) from Ampere (8); on AMD's MI100,
            MI200 and MI300 float16, bfloat16 and float32. Whether shapes and alignment allow it is not looked at
other       neither: the type or the GPU has none
unknown     the operator, its types or the GPU were not recorded
The four add up to the time of these kernels.
Sources: NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities"; AMD, CDNA architecture white papers (matrix cores).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec
import numpy as np

from perfscope.trace.columns import KERNEL, Rank
from perfscope.trace.host import Links
from perfscope.trace.names import kind

NVIDIA = {
    "c10::Half": 7,
    "signed char": 7,
    "c10::BFloat16": 8,
    "float": 8,
    "c10::Float8_e4m3fn": 9,
    "c10::Float8_e5m2": 9,
}
AMD = re.compile(r"\bMI(100|2\d\d|3\d\d)")
AMD_TYPES = ("c10::Half", "c10::BFloat16", "float", "signed char")
NONE, USED, ELIGIBLE, OTHER, UNKNOWN = range(5)


@dataclass(frozen=True)
class Unused:
    """Eligible kernels of one operator and input type."""

    op: str
    dtype: str
    count: int
    total_ns: int


@dataclass(frozen=True)
class TensorCores:
    """The time of matmuls, convolutions and attention by what they make of tensor cores; `unused`: the eligible ones, longest first."""

    used_ns: int
    eligible_ns: int
    other_ns: int
    unknown_ns: int
    unused: tuple[Unused, ...] = ()

    @property
    def total_ns(self) -> int:
        return self.used_ns + self.eligible_ns + self.other_ns + self.unknown_ns


def tensor_cores(rank: Rank, links: Links) -> TensorCores | None:
    """None where no kernel is a matmul, convolution or attention."""
    e = rank.events
    uses = np.array([{None: NONE, True: USED, False: OTHER}[kind(n).tensor_cores] for n in rank.names], np.int64)
    mine = np.flatnonzero(e.cat[links.gpu] == KERNEL)
    mine = mine[uses[e.name[links.gpu[mine]]] != NONE] if len(mine) else mine
    if not len(mine):
        return None
    rows, op = links.gpu[mine], links.op[mine]
    at = np.maximum(op, 0)
    device, name = e.device[rows].astype(np.int64), np.where(op >= 0, e.name[at], -1).astype(np.int64)
    types = np.where(op >= 0, e.dtypes[at], -1)
    sizes = 1 << 16, len(rank.names) + 1, len(rank.texts) + 1  # devices, names, types: one number for each mixture
    key = (
        ((uses[e.name[rows]] * sizes[0] + np.clip(device, 0, sizes[0] - 1)) * sizes[1] + name + 1) * sizes[2]
        + types
        + 1
    )
    found, index, count = np.unique(key, return_inverse=True, return_counts=True)
    total = np.zeros(len(found), np.int64)
    np.add.at(total, index.reshape(-1), e.dur_ns[rows])
    parts = zip(*(v.tolist() for v in _apart(found, sizes)), count.tolist(), total.tolist())
    properties = _properties(rank)
    sums, unused = {k: 0 for k in (USED, ELIGIBLE, OTHER, UNKNOWN)}, {}
    for use, device, name, types, n, ns in parts:
        dtype = _first(rank.texts[types]) if types >= 0 else ""
        state = USED if use == USED else _could(properties.get(device), dtype)
        sums[state] += ns
        if state == ELIGIBLE:
            n0, ns0 = unused.get((rank.names[name], dtype), (0, 0))
            unused[rank.names[name], dtype] = n0 + n, ns0 + ns
    ordered = sorted((Unused(*k, *v) for k, v in unused.items()), key=lambda u: (-u.total_ns, u.op))
    return TensorCores(sums[USED], sums[ELIGIBLE], sums[OTHER], sums[UNKNOWN], tuple(ordered))


def _apart(key: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """(use, device, name, types) of each key."""
    key, types = np.divmod(key, sizes[2])
    key, name = np.divmod(key, sizes[1])
    use, device = np.divmod(key, sizes[0])
    return [use, device, name - 1, types - 1]


def _properties(rank: Rank) -> dict[int, tuple[str, int]]:
    """Device number -> (its name, the major compute capability)."""
    some = rank.meta.get("deviceProperties")
    return {
        p["id"]: (str(p.get("name", "")), p["computeMajor"])
        for p in (some if isinstance(some, list) else [])
        if isinstance(p, dict) and isinstance(p.get("id"), int) and isinstance(p.get("computeMajor"), int)
    }


def _first(text: str) -> str:
    """The type of the first input that is a tensor."""
    try:
        types = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return ""
    return (
        next((t for t in types if isinstance(t, str) and t not in ("", "Scalar", "ScalarList")), "")
        if isinstance(types, list)
        else ""
    )


def _could(device: tuple[str, int] | None, dtype: str) -> int:
    if device is None or not dtype:
        return UNKNOWN
    name, major = device
    if AMD.search(name):
        return ELIGIBLE if dtype in AMD_TYPES else OTHER
    if re.search(r"\b(AMD|Radeon|Instinct|gfx\d+|Intel)\b", name):
        return UNKNOWN
    return ELIGIBLE if major >= NVIDIA.get(dtype, 99) else OTHER
