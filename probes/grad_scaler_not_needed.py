"""A GradScaler runs although nothing is computed in half precision.

## What it sees
The step uses a GradScaler, and no tensor in it is float16: bfloat16 autocast, or float32.

## Why it is slow
The scaler multiplies the loss, divides every gradient, looks for infinities in all of them and, unless the optimizer is fused,
waits for the GPU in every step to know whether there are any. It exists because small gradients underflow in float16;
bfloat16 has the range of float32.

## Cure
loss.backward(); optimizer.step(), without a scaler.

## Not for
float16: it is needed there.

## References
SLOW_PATHS S22; PyTorch "Automatic Mixed Precision" examples; pytorch/torch/amp/grad_scaler.py.
"""

from perfscope.probe import Finding, Place, replace

USES = ("config",)
CODE = """loss.backward()                         # no scaler.scale(loss), no scaler.unscale_, no scaler.update()
optimizer.step()"""
SCALING = ("_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_")


def detect(evidence):
    c = evidence.config
    if not c.scaler or c.dtype in ("half", "amp-half"):
        return
    if any(t.dtype == "float16" for o in evidence.ops or () for t in (*o.inputs, *o.outputs)):
        return
    ran = [o for o in evidence.calls(*SCALING)]
    looked = sum(t.bytes for o in ran for t in o.inputs[:-2])
    saw = f"dtype {c.dtype}, no float16 tensor in the step"
    saw += f"; {len(ran)} operators scale and check {looked / 1e6:.1f} MB of gradients" if ran else ""
    yield Finding("", f"a GradScaler guards against float16's underflow, but the step computes in {c.dtype.removeprefix('amp-')}",
                  (Place("GradScaler", saw),), "leave the scaler out", share=evidence.time_share(*SCALING),
                  basis="ceiling" if evidence.trace is not None else "", evidence={"dtype": c.dtype, "operators": len(ran), "bytes": looked})


def fix(workload):
    return replace(workload, scaler=False)


def plant(workload):
    return replace(workload, scaler=True)
