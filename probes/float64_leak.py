"""float64 where float32 was meant: one NumPy array or one double buffer, and all that it touches is computed in double precision.

## What it sees
Operators of the step that read or write float64 (single numbers do not count, nor do casts from it), at least one per cent of the
bytes that all operators touch, or of the time in a trace; and where it begins: a parameter, a buffer, an input, or an operator in your code.

## Why it is slow
float64 doubles the bytes, and spreads: float32 combined with float64 gives float64. CPUs compute it at half the rate, without
oneDNN's convolutions; data-centre GPUs at half of float32's rate without Tensor Cores, all other GPUs at 1/32 to 1/64 of it.

## Cure
.float() where it begins. `fix` does it for parameters, buffers, tensors that modules hold, the tensors of a loss module and the
batches; where your forward makes the float64 itself, it is a hint with the line.

## Not for
Models that need the precision: then suppress this probe.

## References
SLOW_PATHS S17; PyTorch "Tensor Attributes", type promotion; CUDA C++ Programming Guide, arithmetic throughput.
"""

import copy
from functools import partial

from perfscope.evidence.precision import tensors_of
from perfscope.probe import Finding, Place, add, replace

USES = ("ops", "trace")
CODE = "x = x.float()                           # at the line where it begins; np.float32 for arrays"
SHARE = 0.01                # of the bytes touched, or of the time: the smallest change that matters (METHOD 8)
FLOATS = ("float64", "float32", "float16", "bfloat16")


def wide(t) -> bool:
    """Whether a tensor is float64 and no single number."""
    return t.dtype == "float64" and t.numel > 1


def narrows(o) -> bool:
    """Whether an operator is the cure itself: a copy of a float64 tensor to a smaller type."""
    return o.name in ("_to_copy", "copy_") and not any(wide(t) for t in o.outputs)


def detect(evidence):
    if evidence.ops is not None:
        yield from _in_ops(evidence)
    elif evidence.trace is not None:
        yield from _in_trace(evidence)


def _in_ops(evidence):
    touched = [(o, t) for o in evidence.ops if not narrows(o) for t in (*o.inputs, *o.outputs) if t.dtype in FLOATS]
    double, total = sum(t.bytes for _, t in touched if wide(t)), sum(t.bytes for _, t in touched)
    if not total or double / total < SHARE:
        return
    given, made = [], []
    for o in evidence.ops:
        inside = [t for t in o.inputs if wide(t)]
        if o.phase == "backward" or narrows(o) or not inside and not any(wide(t) for t in o.outputs):
            continue
        if not inside or o.phase == "data":
            made.append(o)
        elif any(t.parameter for t in inside) or any(t.dtype in FLOATS and not wide(t) and t.numel > 1 for t in o.inputs):
            given.append(o)
    entering = [t for m in (evidence.modules or ())[:1] for t in m.inputs if wide(t)]
    origins: dict[tuple[str, str], str] = {("model input", ""): f"{entering[0].shape} float64"} if entering else {}
    for o in (*given, *made):
        origins.setdefault((o.module or o.phase, o.line), _words(o))
    places = tuple(Place(where + (f" at {line}" if line else ""), saw) for (where, line), saw in origins.items())
    parameters = {n: t.dtype for m in evidence.modules or () for n, t in ((f"{m.path}.{k}", t) for k, t in m.parameters.items()) if t.dtype in FLOATS}
    whole = bool(parameters) and all(d == "float64" for d in parameters.values())
    shares = _shares(evidence)
    text = "the whole model is float64" if whole else f"float64 begins at {len(places)} place{'s' * (len(places) != 1)} of a model that is not"
    yield Finding("", f"{text}: {double / total:.0%} of the bytes that its operators touch are double precision", places, "make it float32 where it begins",
                  share=shares, basis="" if shares is None else "ceiling", extra={"hint": True} if made and not given and not entering else {},
                  note="if this precision is wanted, suppress this probe" if whole else "",
                  evidence={"float64_bytes": double, "bytes": total, "operators": len({id(o) for o, t in touched if wide(t)})})


def _words(o) -> str:
    inputs = ", ".join(f"{t.dtype} {t.shape}" + (f" ({t.parameter})" if t.parameter else "") for t in o.inputs)
    return f"{o.name} of {inputs or 'no tensor'} gives {', '.join(f'{t.dtype} {t.shape}' for t in o.outputs)}"


def _double_rows(trace) -> list:
    return [r for r in trace.ops if any(kind == "double" and shape for shape, kind in tensors_of(r))]


def _shares(evidence) -> float | None:
    trace = evidence.trace
    if trace is None:
        return None
    own = lambda r: r.device_self_ns if trace.device_events else r.host_self_ns  # noqa: E731
    total = sum(own(r) for r in trace.ops)
    return sum(own(r) for r in _double_rows(trace)) / total if total else None


def _in_trace(evidence):
    share = _shares(evidence)
    if share is None or share < SHARE:
        return
    rows = sorted(_double_rows(evidence.trace), key=lambda r: -max(r.device_self_ns, r.host_self_ns))
    places = tuple(Place(r.name, f"{r.count} calls on {r.shapes} {r.dtypes}") for r in rows[:10])
    yield Finding("", f"{len(rows)} operators compute in float64", places, "make it float32 where it begins", share=share, basis="ceiling",
                  evidence={"operators": sorted({r.name for r in rows})}, extra={"hint": True})


# ---------------------------------------------------------------- cure

def narrow(value):
    """The same with float64 tensors as float32, nested or not."""
    if hasattr(value, "is_floating_point"):
        return value.float() if str(value.dtype) == "torch.float64" else value
    if isinstance(value, dict):
        return {k: narrow(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        values = [narrow(v) for v in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    return value


def narrow_module(module):
    """Parameters, buffers and other tensors of a module and those below it, in place."""
    for m in module.modules():
        for p in m.parameters(recurse=False):
            p.data = narrow(p.data)
        for held in (m._buffers, vars(m)):
            for name, value in list(held.items()):
                if hasattr(value, "is_floating_point") and narrow(value) is not value:
                    held[name] = narrow(value)


def fix(workload):
    loss = workload.loss
    if hasattr(loss, "modules"):
        loss = copy.deepcopy(loss)
        narrow_module(loss)
    batch = (lambda n: narrow(workload.batch(n))) if callable(workload.batch) else narrow(workload.batch)
    data = (lambda n: map(narrow, workload.data(n))) if workload.data else None
    return add(replace(workload, batch=batch, data=data, loss=loss), on_model=[narrow_module])


def scaled(model, dtype):
    """A per-channel scale behind the first norm: a buffer."""
    import torch
    norm = model.norm1
    norm.register_buffer("scale", torch.ones(norm.num_features, 1, 1, dtype=getattr(torch, dtype), device=norm.weight.device))
    norm.register_forward_hook(lambda m, args, out: (out * m.scale).to(out.dtype))


def healthy(workload):
    """A per-channel scale behind the first norm, in float32."""
    return add(workload, on_model=[partial(scaled, dtype="float32")])


def plant(workload):
    """The same scale as NumPy gives it: a float64 buffer."""
    return add(workload, on_model=[partial(scaled, dtype="float64")])
