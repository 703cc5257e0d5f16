"""Convolutions run on PyTorch's own im2col or vol2col kernels instead of oneDNN or cuDNN.

## What it sees
The backend that PyTorch says it picks for each convolution of the step: Slow2d, SlowDilated2d, SlowDilated3d, SlowTranspose2d, ...;
and the condition that decided it: oneDNN or cuDNN is switched off, an output_padding as large as the stride, a 3-d convolution
in low precision that this cuDNN is kept from. In a GPU trace: `slow_conv*` operators, im2col, col2im and vol2col kernels.

## Why it is slow
Each image is unfolded into a matrix, which takes kernel size times its memory, and multiplied, one image after the other. oneDNN
and cuDNN read the image where it lies.

## Cure
Switch the library on again (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled). The other conditions are in your code or
your versions, and the finding says which: then it is a hint. 3-d in half or bfloat16 on torch 2.9 with cuDNN 9.8 to 9.14: a
newer torch (2.10) or cuDNN (9.15).

## Not for
Batches of one small image on a CPU: PyTorch picks its own kernels there because they are faster, and this probe is silent. float64
and types that the processor lacks are other probes' diseases (float64_leak, low_precision_without_hardware).

## References
SLOW_PATHS S13, S15, S58; aten/src/ATen/native/Convolution.cpp (use_mkldnn, select_conv_backend); pytorch/pytorch#166122, #174051.
"""

import re

from perfscope.probe import Finding, Place, add, setting

USES = ("ops", "trace")
CODE = "torch.backends.mkldnn.enabled = True    # on a GPU: torch.backends.cudnn.enabled = True"
SLOW = ("Slow2d", "Slow3d", "SlowDilated2d", "SlowDilated3d", "SlowTranspose2d", "SlowTranspose3d")
LOW = ("float16", "bfloat16")
IN_TRACE = re.compile(r"^aten::_?(slow_conv|thnn_conv)")
KERNELS = re.compile(r"^(?!.*cudnn).*(?<![a-z])(im2col|col2im|vol2col|col2vol)", re.I)      # cuDNN has an im2col of its own
SHARE = 0.01                # of the kernels' time in a trace: the smallest change that matters (METHOD 8)
ON = {"cpu": "oneDNN is switched off (torch.backends.mkldnn.enabled is False)", "cuda": "cuDNN is switched off (torch.backends.cudnn.enabled is False)"}


def detect(evidence):
    if evidence.ops is not None:
        yield from _in_ops(evidence)
    elif evidence.trace is not None and evidence.trace.device_events:
        yield from _in_trace(evidence.trace)


def _in_ops(evidence):
    found: dict[str, list] = {}
    for o in evidence.calls("convolution"):
        backend = evidence.backend("convolution_call", o)
        why = reason(evidence, o) if backend in SLOW else ""
        if why:
            found.setdefault(why, []).append((o, backend))
    for why, calls in found.items():
        places = tuple(Place(o.module or o.line or "convolution", f"backend {backend}, because {why}: input {o.inputs[0].shape} {o.inputs[0].dtype} "
                             f"{o.inputs[0].layout}, weight {o.inputs[1].shape}, dilation {o.args.get('dilation')}") for o, backend in calls)
        off = why in ON.values()
        share = evidence.time_share("_slow_conv2d_forward", "_slow_conv2d_backward", "slow_conv3d_forward", "slow_conv_dilated2d", "slow_conv_dilated3d",
                                    "slow_conv_transpose2d", "slow_conv_transpose3d", "convolution", "convolution_backward")
        yield Finding("", f"{len(calls)} convolution{'s' * (len(calls) > 1)} run on PyTorch's own slow kernels, because {why}", places,
                      "switch it on again" if off else "take away the condition", share=share, basis="" if share is None else "ceiling",
                      evidence={"backends": sorted({b for _, b in calls}), "condition": why}, extra={} if off else {"hint": True})


def reason(evidence, o) -> str:
    """Why this call is not oneDNN's or cuDNN's; "" if another probe says it, or PyTorch means well, or it is not known."""
    image, weight = o.inputs[:2]
    c = evidence.config
    if "float64" in (image.dtype, weight.dtype):
        return ""
    if o.args.get("transposed") and any(p >= s for p, s in zip(o.args.get("output_padding", ()), o.args.get("stride", ()))):
        return "its output_padding is not smaller than its stride"
    if image.device == "cpu":
        return ON["cpu"] if evidence.backend("convolution_call", o, onednn=True) not in SLOW and c.switches.get("mkldnn.enabled") is False else ""
    if c.switches.get("cudnn.enabled") is False:
        return ON["cuda"]
    if len(image.shape) == 5 and image.dtype in LOW and 90800 <= (c.cudnn or 0) < 91500:
        return f"PyTorch {c.torch} keeps 3-d convolutions in {image.dtype} from cuDNN {c.cudnn}"
    if image.numel >= 2**31 or o.outputs and o.outputs[0].numel >= 2**31:
        return "it has 2^31 elements or more"
    return "of a condition that PyTorch does not name"


def _in_trace(trace):
    kernels = [k for k in trace.kernels if KERNELS.search(k.name)]
    rows = [r for r in trace.ops if IN_TRACE.search(r.name)]
    total = sum(r.device_total_ns for r in rows) or sum(k.total_ns for k in kernels)
    share = total / trace.kernels_ns if trace.kernels_ns else 0.0
    if not rows or share < SHARE:
        return
    places = tuple(Place(r.name, f"{r.count} calls, {r.device_total_ns / 1e6:.2f} ms of kernels{', inputs ' + r.shapes if r.shapes else ''}") for r in rows)
    places += tuple(Place(k.name, f"{k.count} kernels, {k.total_ns / 1e6:.2f} ms") for k in kernels)
    yield Finding("", "convolutions run on PyTorch's own im2col or vol2col kernels", places, "take away what keeps them from cuDNN", share=share,
                  basis="ceiling", evidence={"operators": sorted({r.name for r in rows}), "kernels": sorted({k.name for k in kernels})}, extra={"hint": True})


def fix(workload):
    import torch
    return add(workload, contexts=[setting(torch.backends.mkldnn, enabled=True), setting(torch.backends.cudnn, enabled=True)])


def plant(workload):
    import torch
    return add(workload, contexts=[setting(torch.backends.mkldnn, enabled=False)])
