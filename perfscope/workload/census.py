"""Counts what really ran: operations of every variant, residues, FLOPs and bytes. In a process of its own, nothing timed.

Counting leaves compiled models slow and a profiler leaves its process slow, so neither happens where timing does
(METHOD section 13). `inspect_elsewhere` starts that process; `inspect` is what runs in it.
"""

from __future__ import annotations

import re

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from perfscope import elsewhere
from perfscope.measure.floor import count_layers, flops
from perfscope.options import Options, options_from
from perfscope.record import Inspection, from_dict, to_dict
from perfscope.workload import parts as taking
from perfscope.workload.sane import make_sane, observe
from perfscope.workload.step import Batches, Prepared, build, with_gradient

#: Operators that should be gone when a part is. `rsqrt` stands for a norm written by hand in a plain function.
FAMILIES = {
    "norm": r"(native|cudnn|miopen)_?(batch|layer|group)_norm|_batch_norm|batch_norm_|_fused_rms_norm|instance_norm|^rsqrt",
    "activation": r"^(" + "|".join(taking.ACTIVATION) + r"|_prelu_kernel|log_sigmoid_forward|threshold)(_|_backward|_forward)?$",
    "attention": r"_scaled_dot_product|^_?(safe_)?softmax|^_softmax_backward",
    "dropout": r"^native_dropout|^bernoulli",
    "pooling": r"^_?(adaptive_)?(max|avg)_pool",
    "embedding": r"^embedding",
}
MATMUL = re.compile(r"^(_?convolution(_backward)?|mm|addmm|bmm|baddbmm|cudnn_convolution.*|mkldnn_convolution)$")


class Count(TorchDispatchMode):
    """Calls of each ATen operator while entered, by its name without overload."""

    def __init__(self):
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.calls[name] = self.calls.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def residue(calls: dict[str, int], removed) -> dict[str, int]:
    """The operators in `calls` that belong to a removed part."""
    patterns = [re.compile(FAMILIES[p]) for p in removed if p in FAMILIES]
    return {name: n for name, n in calls.items() if any(p.search(name) for p in patterns)}


def _unknown_norm(prepared: Prepared, calls: dict[str, int], all_parts) -> bool:
    """Whether a step whose only norms were written by hand in plain functions has no norm part: nothing would look for them."""
    known = "norm" in all_parts or any(h.part == "norm" for h in prepared.handwritten)
    return not known and set(residue(calls, ["norm"])) == {"rsqrt"}


def inspect(prepared: Prepared, batches: Batches, all_parts, order) -> Inspection:
    """Runs one step of every rung of the ladder, and counts. `order` is the ladder's order of `all_parts`."""
    inner = [p for p in order if p in taking.OPERATOR_PARTS]
    full = build(prepared, batches, inner, all_parts)
    expected = with_gradient(prepared)
    census, residues, without, std, matmuls = {}, {}, {}, {}, {}
    for n in range(len(inner) + 1):
        keep = inner[:n]
        variant = build(prepared, batches, keep, all_parts)
        with variant, Count() as count:
            variant.step()
        left = residue(count.calls, [p for p in inner if p not in keep])
        if not keep and _unknown_norm(prepared, count.calls, all_parts):
            left["rsqrt"] = count.calls["rsqrt"]
        census[variant.name] = dict(sorted(count.calls.items()))
        matmuls[variant.name] = sum(c for name, c in count.calls.items() if MATMUL.match(name))
        without[variant.name] = tuple(sorted(expected - with_gradient(prepared)))
        if left:
            residues[variant.name] = left
        make_sane(prepared, batches, variant, keep == inner)
        with variant:
            std[variant.name] = {f"{i:03d}": s for i, s in enumerate(observe(prepared, batches, variant).std)}
    names = list(census)
    removed = {part: {op: after.get(op, 0) - before.get(op, 0) for op in sorted({*after, *before})
                      if after.get(op, 0) > before.get(op, 0)}
               for part, before, after in zip(inner, (census[n] for n in names), (census[n] for n in names[1:]))}
    with full:
        layers = count_layers(lambda: full.step(), batches.size)
    forward, step = flops(layers)
    extra = {"matmul_calls": matmuls, "batch_size": batches.size,
             "handwritten": {h.path: f"{type(h.module).__name__} ({h.part})" for h in prepared.handwritten}}
    if prepared.device.type == "cuda":
        extra["kernels"] = {name: kernels for name, kernels in _kernels(prepared, batches, inner, all_parts).items()}
    return Inspection(forward, step, layers, census, residues, removed, without, std, "own", extra)


def _kernels(prepared, batches, inner, all_parts) -> dict[str, list[str]]:
    """The convolution and matmul kernels of the base and of the full step, from a one-step trace (CUDA only)."""
    found = {}
    for keep in ([], inner):
        variant = build(prepared, batches, keep, all_parts)
        with variant:
            variant.step()
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                variant.step()
                torch.cuda.synchronize()
        names = {e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA}
        found[variant.name] = sorted(n for n in names if re.search(r"gemm|conv|xmma|wgmma|nvjet|cutlass|winograd|implicit", n, re.I))
    return found


def different_work(inspection: Inspection) -> str:
    """"" if every variant ran the same convolutions and matmuls, else what differs, in words.

    Attention on the math backend multiplies matrices of its own, which rightly go with it: only variants that agree on
    attention are compared.
    """
    counts = inspection.extra.get("matmul_calls", {})
    for with_attention in (False, True):
        group = {name: n for name, n in counts.items() if ("attention" in name) == with_attention}
        if len(set(group.values())) > 1:
            return ", ".join(f"{name}: {n}" for name, n in group.items())
    kernels = list(inspection.extra.get("kernels", {}).values())
    if len(kernels) == 2 and kernels[0] != kernels[1]:
        return "other convolution kernels in the base than in the full step: " + \
            ", ".join(sorted(set(kernels[0]) ^ set(kernels[1])))[:300]
    return ""


def inspect_elsewhere(options: Options, batch_size: int, parts) -> Inspection:
    """`inspect` in a new process, for workloads that a name stands for. Raises what went wrong there."""
    request = {"options": options.as_dict(), "batch_size": batch_size, "parts": list(parts)}
    return from_dict(Inspection, elsewhere.ask("perfscope.workload.census", request, "counting operations"))


def answer(request: dict) -> dict:
    """What the process of its own does: the Inspection that was asked for, as a dictionary."""
    from perfscope.workload import resolve, step

    options, parts = options_from(request["options"]), tuple(request["parts"])
    workload = step.with_options(resolve.resolve(options.model, options.input_shape, options.classes), options)
    prepared = step.prepare(workload, device=options.device, compile="off", cuda_graph=False, keep_original=False)
    batches = step.load_batches(prepared, request["batch_size"])
    step.present_parts(prepared, batches, options.parts)
    return to_dict(inspect(prepared, batches, parts, parts))


if __name__ == "__main__":
    elsewhere.serve(answer)
