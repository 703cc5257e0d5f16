"""The floor: FLOPs and fewest bytes of every convolution and matmul of a step, and this machine's two ceilings.

METHOD section 12. Counting slows a process down and compiled code hides from it (METHOD section 13): count the eager
step, in a process that times nothing afterwards. Not seen: fused recurrent kernels (LSTM, GRU), flex attention,
sparse and quantised matmuls. Pooling, norms and pointwise operations have no share in the floor, by definition.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry
from torch.utils.module_tracker import ModuleTracker

from perfscope.measure import machine
from perfscope.record import Ceilings, Layer

aten = torch.ops.aten
MATMULS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten._addmm_activation}
OPERANDS = {aten.mm: ("self", "mat2"), aten.bmm: ("self", "mat2"), aten.baddbmm: ("batch1", "batch2")}
ATTENTION = "_scaled_dot_product_"      # prefix of every fused attention, forward and backward, on every device


def count_layers(step: Callable[[], None], batch_size: int) -> tuple[Layer, ...]:
    """Runs one eager step and gives its convolutions, matmuls and fused attentions, in the order in which they ran.

    `step` does what is to be counted: forward, or forward and backward, on `batch_size` samples. `flops` and `bytes`
    are per sample; `bytes` has each tensor that grows with the batch once, read or written, `fixed_bytes` those
    that do not (weights and their gradients), per step: one call moves `bytes * batch_size + fixed_bytes` at least.
    Identical layers are one entry with a `count`; their `module` is then a pattern ("GPT2.blocks.*.up").
    """
    with ModuleTracker() as tracker, _Counter(tracker, batch_size) as counter:
        step()
    return _merge(counter.layers)


def flops(layers: Iterable[Layer]) -> tuple[float, float]:
    """(forward, whole step) FLOPs per sample; a multiply-add is two."""
    work = [(x.flops * x.count, x.direction) for x in layers]
    return sum(f for f, direction in work if direction == "forward"), sum(f for f, _ in work)


# ---------------------------------------------------------------- counting

class _Counter(TorchDispatchMode):
    """Sees every ATen call. Weights are known by their storage: parameters, views of them, casts of them."""
    def __init__(self, tracker: ModuleTracker, batch_size: int):
        super().__init__()
        self.tracker, self.batch_size = tracker, batch_size
        self.layers: list[Layer] = []
        self.weights: dict[int, torch.Tensor] = {}          # storage -> tensor, held so that no address is used twice
        self.weight_shapes: set[tuple[int, ...]] = set()    # sorted, of the weights that matmuls multiplied with

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        counted = _is_counted(func.overloadpacket)
        if not counted:                                     # in inference mode aten::linear comes whole: take it apart
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        named = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
        inputs = {k: v for k, v in named.items() if isinstance(v, torch.Tensor)}
        outs = [t if isinstance(t, torch.Tensor) and t.numel() else None
                for t in (out if isinstance(out, (tuple, list)) else (out,))]
        self._hold(t for t in inputs.values() if isinstance(t, torch.nn.Parameter))
        if counted:
            self._add(func.overloadpacket, named, inputs, outs)
        elif inputs and torch.is_grad_enabled() and all(map(self._is_weight, inputs.values())):
            self._hold(outs)                                # a cast of a weight, say
        return out

    def _hold(self, tensors: Iterable[torch.Tensor | None]) -> None:
        self.weights.update({t.untyped_storage()._cdata: t for t in tensors if t is not None})

    def _is_weight(self, t: torch.Tensor) -> bool:
        return t.untyped_storage()._cdata in self.weights

    def _add(self, op, named, inputs, outs) -> None:
        backward = torch._C._current_graph_task_id() != -1
        known = [t for t in inputs.values() if self._is_weight(t)]
        fixed = [len(known) == len(inputs)] * len(outs)     # which outputs do not grow with the batch
        if op is aten.convolution_backward:
            unused = {name for name, wanted in zip(("weight", "input"), named["output_mask"]) if not wanted}
            inputs = {k: t for k, t in inputs.items() if k not in unused}
            fixed = [False, True, True]
        elif op in MATMULS:
            inputs = {k: t for k, t in inputs.items() if k != "self" or named.get("beta", 1) != 0}
            self.weight_shapes.update(tuple(sorted(t.shape)) for t in known)
            if backward and not known:                      # of two activations: a weight's gradient if shaped like one
                fixed = [tuple(sorted(outs[0].shape)) in self.weight_shapes]
        moved = {(t.data_ptr(), t.numel()): (_bytes(t), self._is_weight(t)) for t in inputs.values()}
        moved |= {(t.data_ptr(), t.numel()): (_bytes(t), f) for t, f in zip(outs, fixed) if t is not None}
        path = max((p for p in self.tracker.parents if p != "Global"), key=len, default="")
        self.layers.append(Layer(
            op=op.__name__.lstrip("_"), direction="backward" if backward else "forward",
            shape=_words(op, named, outs, self.batch_size, self._is_weight, fixed[0]),
            flops=_flops(op, named, outs) / self.batch_size,
            bytes=sum(size for size, weight in moved.values() if not weight) / self.batch_size,
            fixed_bytes=float(sum(size for size, weight in moved.values() if weight)), module=path))


def _is_counted(op) -> bool:
    return op in MATMULS or op in flop_registry or op.__name__.startswith(ATTENTION)


def _bytes(t: torch.Tensor) -> int:
    """Bytes that have to move: an expanded tensor holds less than its shape says."""
    return min(t.numel() * t.element_size(), t.untyped_storage().nbytes())


def _flops(op, named: dict, outs: list) -> float:
    """FLOPs of one call, by torch's formulas, but for two that it gets too high: the weight gradient of a grouped
    convolution (not divided by the groups), and causal attention (the upper triangle is not needed)."""
    if op is aten.convolution_backward:
        forward = conv_flop_count(named["input"].shape, named["weight"].shape, named["grad_output"].shape,
                                  named["transposed"])
        return forward * sum(named["output_mask"][:2])      # each of the two gradients has the forward's multiply-adds
    if op.__name__.startswith(ATTENTION):
        (*outer, s, d), t, d_v = named["query"].shape, named["key"].shape[-2], named["value"].shape[-1]
        pairs = sum(min(i + 1, t) for i in range(s)) if named.get("is_causal") else s * t
        backward = op.__name__.endswith("_backward")        # makes the scores again, then four products
        return 2 * math.prod(outer) * pairs * (3 * d + 2 * d_v if backward else d + d_v)
    values = [v for k, v in named.items() if k not in ("beta", "alpha", "use_gelu")]
    formula = flop_registry[aten.addmm if op is aten._addmm_activation else op]
    return formula(*values, out_val=outs[0] if len(outs) == 1 else tuple(outs))


def _words(op, named: dict, outs: list, batch_size: int, is_weight, weight_gradient: bool) -> str:
    """The shapes in words, without the batch where it leads: "64x32x32 * 128x64x3x3", "10xn * nx512" (n: the batch)."""
    def size(t, along):
        dims = [str(d) for d in t.shape]
        if along is not None and t.shape[along] % batch_size == 0:
            per = t.shape[along] // batch_size
            dims[along] = ("" if per == 1 else str(per)) + ("n" if along or weight_gradient else "")
        return "x".join(d for d in dims if d)

    if op in MATMULS:
        a, b = (named[k] for k in OPERANDS.get(op, ("mat1", "mat2")))
        if a.dim() == 3:
            return f"{size(a, 0)} * {size(b, 0)}"
        along = (1, 0) if weight_gradient else (None if is_weight(a) else 0, None if is_weight(b) else 1)
        return f"{size(a, along[0])} * {size(b, along[1])}"
    if op in (aten.convolution, aten.convolution_backward):
        stride, wanted = max(named["stride"]), zip(("input", "weight"), named.get("output_mask", ()))
        gradients = ", ".join(name for name, want in wanted if want)
        text = f"{size(named['input'], 0)} * {size(named['weight'], None)}"
        return text + (f" stride {stride}" if stride > 1 else "") + (f" -> {gradients}" if gradients else "")
    return " * ".join(size(named[k], 0) for k in ("input", "self", "query", "key", "value", "weight") if k in named)


def _merge(layers: list[Layer]) -> tuple[Layer, ...]:
    """Identical layers as one, in the order of their first."""
    groups: dict[tuple, list[Layer]] = {}
    for x in layers:
        groups.setdefault((x.op, x.direction, x.shape, x.flops, x.bytes, x.fixed_bytes), []).append(x)
    return tuple(dataclasses.replace(same[0], count=len(same), module=_pattern([x.module for x in same]))
                 for same in groups.values())


def _pattern(paths: list[str]) -> str:
    """What module paths have in common: "Net.blocks.*.up"; the first and a count where their depths differ."""
    split = [p.split(".") for p in dict.fromkeys(paths)]
    if len({len(p) for p in split}) > 1:
        return f"{paths[0]} and {len(split) - 1} more"
    return ".".join(names[0] if len(set(names)) == 1 else "*" for names in zip(*split))


# ---------------------------------------------------------------- ceilings

DTYPES = {"float32": torch.float32, "half": torch.float16, "amp-half": torch.float16,
          "bfloat16": torch.bfloat16, "amp-bfloat16": torch.bfloat16}
CUDA_SIDES = (8192,)        # of the square matmul: 1.1 TFLOP, large enough for every tensor core
CPU_SIDES = (512, 1024, 2048)      # the fastest counts: which one it is differs by dtype and processor
CPU_CALL_S = 0.15           # the next side is tried only if a call is expected to take less than this
REPEATS_S = 0.2             # seconds of repeats on a CPU, after at least 3
CUDA_COPY_BYTES = 2 << 30   # an H200's second-level cache has 50 MB
CPU_COPY_BYTES = 128 << 20  # and at least four times the last-level cache, up to 1 GiB


def ceilings(device: str | torch.device, dtype: str | torch.dtype) -> Ceilings:
    """What this machine reaches: FLOP/s of a large matmul or convolution in the step's dtype, bytes/s of a large copy.

    The greater of matmul and convolution counts: where the BLAS is not the processor's own, convolutions (oneDNN) ran
    twice as fast as matmuls (MKL), and a ceiling that a plain layer exceeds is none. Best of several repeats, on random
    data (zeros would cost less power), under the current TF32 setting. `dtype` is a torch dtype or a name of
    `WorkloadInfo.dtype`. Copied bytes count twice, read and written. About 1 s on a CPU.
    """
    device = torch.device(device)
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    with torch.no_grad():
        kind = DTYPES[dtype] if isinstance(dtype, str) else dtype
        side, matmul_s = _matmul(device, kind)
        matmul = 2 * side ** 3 / matmul_s
        convolution = _convolution(device, kind, matmul)
        moved, copy_s = _copy(device)
    tf32 = device.type == "cuda" and machine.tf32()
    extra = {"matmul_side": side, "matmul_s": matmul_s, "copy_bytes": moved, "copy_s": copy_s, "tf32": tf32,
             "threads": torch.get_num_threads(), "matmul": matmul, "convolution": convolution}
    return Ceilings(max(matmul, convolution), moved / copy_s, name, extra)


def _convolution(device: torch.device, dtype: torch.dtype, expected: float) -> float:
    """FLOP/s of a large 3x3 convolution in channels_last; of a small one where `expected` FLOP/s are few."""
    channels, side, batch = 256, 16, 256 if device.type == "cuda" else 16
    flops = 2 * 9 * channels ** 2 * side ** 2               # per sample
    if device.type != "cuda" and batch * flops > expected * CPU_CALL_S:
        batch = 1
    x = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    return batch * flops / best_s(lambda: torch.conv2d(x, weight, padding=1), device)


def _matmul(device: torch.device, dtype: torch.dtype) -> tuple[int, float]:
    """(side, seconds) of the square matmul with the most FLOP/s."""
    found: list[tuple[int, float]] = []
    for side in CUDA_SIDES if device.type == "cuda" else CPU_SIDES:
        if found and device.type != "cuda" and found[-1][1] * (side / found[-1][0]) ** 3 > CPU_CALL_S:
            break
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty(side, side, device=device, dtype=dtype)
        found.append((side, best_s(lambda: torch.mm(a, b, out=out), device)))
    return max(found, key=lambda x: x[0] ** 3 / x[1])


def _copy(device: torch.device) -> tuple[int, float]:
    """(bytes read and written, seconds) of a copy much larger than the caches."""
    size = (min(CUDA_COPY_BYTES, torch.cuda.mem_get_info(device)[0] // 4) if device.type == "cuda" else
            min(max(CPU_COPY_BYTES, 4 * last_level_cache_bytes()), 1 << 30))
    source = torch.randn(1 << 20, device=device).repeat(max(1, size >> 22))
    target = torch.empty_like(source)
    return 2 * 4 * source.numel(), best_s(lambda: target.copy_(source), device)


def best_s(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls, after warm-up; CUDA events on a GPU, the host's clock elsewhere."""
    if device.type != "cuda":
        call()
        times, end = [], time.perf_counter() + REPEATS_S
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)
    with torch.cuda.device(device):
        for _ in range(3):
            call()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(21)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return min(a.elapsed_time(b) for a, b in zip(marks, marks[1:])) / 1e3


def last_level_cache_bytes() -> int:
    """Size of the processor's largest cache, 0 where the system does not say (Linux only: "32768K")."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s[:-1]) << 10 for s in sizes if s.endswith("K")), default=0)
