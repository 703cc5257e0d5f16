"""Arithmetic of operators whose input shapes were recorded, and the rate it ran at. Only shapes: nothing is guessed.

    flops       multiplications and additions, 2 per multiply-add, additions of a bias left out (as in PyTorch's FlopCounterMode):
                mm, addmm, addmv, mv, bmm, baddbmm, linear, matmul (not broadcast): 2 x rows x inner x columns (x batch)
                convolution: 2 x elements of the output x elements of the weight / its output channels (transposed: of the
                input / its input channels). The output's shape is not recorded: it is that of the gradient in a
                `convolution_backward` of the same input and weight shapes; where
                there is none, or two that differ, the operator counts as one without figures
                convolution_backward: twice the forward's, for the gradients of input and weight (one may have been switched
                off, as in a network's first layer: the mask is not recorded, so `upper_bound` is set)
    bytes       of the inputs and the output once, in the recorded types: the least that must move; None where a type is unknown
    device_ns   all device work launched on its thread while it ran (tables.ops); host_ns: its own length
    flop_per_s  flops / device time, or of the host's where no device was traced; None if that is nothing
An operator inside another one that has figures (addmm inside linear) is left out: nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import msgspec
import numpy as np

from perfscope.trace.columns import Rank
from perfscope.trace.host import Links
from perfscope.trace.tables import device_totals, sums

# bytes of one element by the names the profiler writes (c10::ScalarType and C++ ones; parameters are "Scalar", "")
SIZES = {
    "float": 4,
    "double": 8,
    "c10::Half": 2,
    "c10::BFloat16": 2,
    "int": 4,
    "long": 8,
    "long int": 8,
    "short": 2,
    "signed char": 1,
    "unsigned char": 1,
    "bool": 1,
    "c10::Float8_e4m3fn": 1,
    "c10::Float8_e5m2": 1,
    "c10::complex<float>": 8,
    "c10::complex<double>": 16,
}
# where the two factors of a product stand among the inputs
PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::mv": (0, 1),
    "aten::bmm": (0, 1),
    "aten::matmul": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmv": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::_scaled_mm": (0, 1),
    "aten::addmm_": (1, 2),
    "aten::baddbmm_": (1, 2),
}
FORWARD = (
    "aten::conv1d",
    "aten::conv2d",
    "aten::conv3d",
    "aten::convolution",
    "aten::_convolution",
    "aten::cudnn_convolution",
    "aten::mkldnn_convolution",
    "aten::miopen_convolution",
)
# where the gradient, the input and the weight stand among the inputs of a backward pass; the last three are those of 2021
BACKWARD = {
    "aten::convolution_backward": (0, 1, 2),
    "aten::cudnn_convolution_backward": (1, 0, 2),
    "aten::miopen_convolution_backward": (1, 0, 2),
    "aten::mkldnn_convolution_backward": (1, 0, 2),
}


@dataclass(frozen=True)
class RooflineRow:
    """All calls of one operator with the same shapes and types. `intensity`: flops per byte. Figures are those of all calls."""

    name: str
    shapes: str
    dtypes: str
    count: int
    flops: int
    bytes: int | None
    intensity: float | None
    device_ns: int
    host_ns: int
    flop_per_s: float | None
    upper_bound: bool = False


@dataclass(frozen=True)
class Roofline:
    """`flops`: of all rows. `without`: calls of the same operators whose arithmetic the shapes do not tell."""

    flops: int
    device_ns: int
    without: int
    rows: tuple[RooflineRow, ...] = ()


def flops(name: str, shapes: list, outputs: dict) -> int | None:
    """Of one call; None where the shapes do not tell. `outputs`: (input, weight) shapes of convolutions -> output shape."""
    try:
        if name in PRODUCTS:
            a, b = (shapes[i] for i in PRODUCTS[name])
            return _product(a, b)
        if name == "aten::linear":
            x, w = shapes[0], shapes[1]
            return 2 * prod(x) * w[0] if x and len(w) == 2 and x[-1] == w[1] else None
        if name in FORWARD:
            return _convolution(shapes[0], shapes[1], outputs.get((tuple(shapes[0]), tuple(shapes[1]))))
        if name in BACKWARD:
            grad, x, weight = (shapes[i] for i in BACKWARD[name])
            one = _convolution(x, weight, grad)
            return None if one is None else 2 * one
    except (IndexError, TypeError, ZeroDivisionError):
        pass
    return None


def _product(a: list, b: list) -> int | None:
    if not a or not b or len(a) > 1 and len(b) > 2 and a[:-2] != b[:-2] or len(a) == 1 and len(b) > 2:
        return None
    inner = b[-2] if len(b) > 1 else b[0]
    if a[-1] != inner:
        return None
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def _convolution(x: list, weight: list, out) -> int | None:
    """Of the forward pass. A transposed one is known by its weight: input channels first."""
    if not x or len(weight) < 3 or len(x) != len(weight) or not out or len(out) != len(x) or x[0] != out[0]:
        return None
    if weight[0] == out[1] and x[1] % weight[1] == 0:
        if weight[0] == x[1] and all(o > i for o, i in zip(out[2:], x[2:])):
            return None  # as many channels in as out, and larger: either kind
        return 2 * prod(out) * prod(weight[1:])
    if weight[0] == x[1] and out[1] % weight[1] == 0:
        return 2 * prod(x) * prod(weight[1:])
    return None


def _shapes(text: str) -> list:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return []


def _bytes(name: str, shapes: list, dtypes: list, outputs: dict) -> int | None:
    """The inputs and the result once."""
    try:
        sizes = [
            (prod(s) * SIZES[d] if s else 0)
            for s, d in zip(shapes, dtypes)
            if isinstance(s, list) and d not in ("", "Scalar", "ScalarList")
        ]
        if name in PRODUCTS:
            a, b = (shapes[i] for i in PRODUCTS[name])
            out, size = prod(a[:-1]) * (b[-1] if len(b) > 1 else 1), SIZES[dtypes[PRODUCTS[name][0]]]
        elif name == "aten::linear":
            out, size = prod(shapes[0][:-1]) * shapes[1][0], SIZES[dtypes[0]]
        elif name in BACKWARD:
            _, x, weight = BACKWARD[name]
            out, size = prod(shapes[x]) + prod(shapes[weight]), SIZES[dtypes[x]]
        else:
            out, size = prod(outputs[tuple(shapes[0]), tuple(shapes[1])]), SIZES[dtypes[0]]
        return sum(sizes) + out * size
    except (KeyError, IndexError, TypeError):
        return None


def roofline(rank: Rank, links: Links) -> Roofline | None:
    """The operators with known arithmetic, the most device (then host) time first; None where no shapes were recorded."""
    nest, e = links.ops, rank.events
    if nest is None or not (e.shapes[nest.rows] >= 0).any():
        return None
    heavy = [
        i for i, n in enumerate(rank.names) if n in PRODUCTS or n == "aten::linear" or n in FORWARD or n in BACKWARD
    ]
    mine = np.flatnonzero(np.isin(e.name[nest.rows], heavy))
    if not len(mine):
        return None
    key = np.stack((e.name[nest.rows[mine]], e.shapes[nest.rows[mine]], e.dtypes[nest.rows[mine]]), 1).astype(np.int64)
    used, index = np.unique(key, axis=0, return_inverse=True)
    index = index.reshape(-1)
    text = [
        (rank.names[n], rank.texts[s] if s >= 0 else "", rank.texts[d] if d >= 0 else "") for n, s, d in used.tolist()
    ]
    shapes = [_shapes(s) for _, s, _ in text]
    outputs = _outputs([(t[0], s) for t, s in zip(text, shapes)])
    each = [flops(t[0], s, outputs) for t, s in zip(text, shapes)]
    known = np.array([f is not None for f in each])
    covered = np.full(len(nest.rows), -1, np.int64)  # an ancestor that has figures
    covered[mine[known[index]]] = 1
    above = nest.inherited(covered, -1)
    inside = (nest.parent[mine] >= 0) & (above[np.maximum(nest.parent[mine], 0)] == 1)
    around = np.full(len(nest.rows), -1, np.int64)  # outermost of those without figures: their insides may have them
    around[mine] = 1
    around = nest.inherited(around, -1)
    outer = ~inside & ~((nest.parent[mine] >= 0) & (around[np.maximum(nest.parent[mine], 0)] == 1))
    counted = ~inside & known[index]
    n = len(used)
    one = index[counted]
    count = np.bincount(one, minlength=n)
    device = sums(one, device_totals(rank, links)[mine[counted]], n)
    host = sums(one, (nest.end - nest.start)[mine[counted]], n)
    rows = []
    for i in np.flatnonzero(count).tolist():
        c, dtypes = int(count[i]), _shapes(text[i][2]) if text[i][2] else []
        size = _bytes(text[i][0], shapes[i], dtypes, outputs)
        ns = int(device[i]) if len(links.gpu) else int(host[i])
        rows.append(
            RooflineRow(
                *text[i],
                c,
                each[i] * c,
                size * c if size else None,
                each[i] / size if size else None,
                int(device[i]),
                int(host[i]),
                each[i] * c / ns * 1e9 if ns else None,
                text[i][0] in BACKWARD,
            )
        )
    rows.sort(key=lambda r: (-r.device_ns, -r.host_ns))
    return Roofline(
        sum(r.flops for r in rows), sum(r.device_ns for r in rows), int((outer & ~known[index]).sum()), tuple(rows)
    )


def _outputs(calls: list) -> dict:
    """(input, weight) -> the output's shape, from the gradients; those that disagree are left out."""
    found: dict[tuple, set] = {}
    for name, s in calls:
        if name in BACKWARD and len(s) > 2 and all(isinstance(x, list) for x in s[:3]):
            grad, x, weight = (tuple(s[i]) for i in BACKWARD[name])
            found.setdefault((x, weight), set()).add(grad)
    return {k: next(iter(v)) for k, v in found.items() if len(v) == 1}
