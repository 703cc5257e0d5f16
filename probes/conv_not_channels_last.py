"""Convolutions on contiguous (NCHW) tensors: their fast kernels want channels_last.

## What it sees
Convolutions of whose 4-d input and weight neither is channels_last and whose output is not either (a 1-channel image and a 1x1
weight are both layouts at once), each with its channels and its share of the step's arithmetic. On a GPU only where the fast kernels are to be had:
half or bfloat16 from Volta on, TF32 from Ampere on. With a trace, how many layout conversions ran.

## Why it is slow
Tensor Core kernels work channels-last, so cuDNN converts around each convolution: 633 conversions, 9.3 % of the kernel time, in a ResNet-50
on an A100 (data/README.md). On a CPU it is rather what lies between the convolutions: batch norm took 0.39, max-pool 0.10 and
bilinear upsampling 0.08 of its contiguous time in channels_last here, depthwise convolutions 0.31 to 0.54, ordinary ones 0.9 to 1.0.

## Cure
`model.to(memory_format=torch.channels_last)`, and the same for the images.

## Not for
Networks with instance norm, group norm or softmax over channels (on a CPU, group norm took up to 25 times as long in channels_last), grouped
convolutions on old GPUs, float32 without TF32. It is a lead until the whole step has been timed. Convolutions with less than 1 %
of the step's arithmetic, like a vision transformer's patches, are left alone.

## References
SLOW_PATHS S05, S07; PyTorch tutorial "Channels Last Memory Format in PyTorch"; pytorch/pytorch#81940.
"""

from perfscope.evidence import layers
from perfscope.probe import Finding, Place, replace

USES = ("model",)
CODE = "model = model.to(memory_format=torch.channels_last); images = images.contiguous(memory_format=torch.channels_last)"
KINDS = ("Conv2d", "ConvTranspose2d")
SMALLEST = 0.01             # of the step's arithmetic: the change that matters, METHOD 8
OPERATORS = ("convolution", "convolution_backward", "mkldnn_convolution", "cudnn_convolution", "miopen_convolution")
LOW = ("float16", "bfloat16")


def detect(evidence):
    c = evidence.config
    calls = [m for m in evidence.of(*KINDS) if m.inputs and m.outputs and "weight" in m.parameters and len(m.inputs[0].shape) == 4]
    plain = [m for m in calls if _plain(m) and _fast_elsewhere(m, c)]
    if not plain or c.memory_format == "channels_last":
        return
    flops = {}
    for o in evidence.ops or ():
        if o.flops and o.phase == "forward":
            flops[o.module] = flops.get(o.module, 0) + o.flops
    total = sum(flops.values())
    part = sum(flops.get(p, 0) for p in {m.path for m in plain}) / total if total else None
    if part is not None and part < SMALLEST:
        return
    places = tuple(Place(m.path, _saw(m, flops.get(m.path, 0) / total if total else None)) for m in plain)
    turned = layers.kernels(evidence.trace, lambda r: r.layout) if evidence.trace is not None else None
    turned = turned if turned and turned.count else None
    share = evidence.time_share(*OPERATORS)
    yield Finding("", f"{len(plain)} of {len(calls)} convolutions run on contiguous tensors" + (f", with layout conversions: {turned.said}" if turned else ""),
                  places, "put model and input in channels_last", share=share, basis="ceiling" if share is not None else "",
                  evidence={"convolutions": len(plain), "of": len(calls), "share_of_flops": part, **({"conversions": turned.figures} if turned else {})})


def _plain(m):
    """Whether a convolution runs contiguous: layouts that are "both" do not decide."""
    layouts = {m.inputs[0].layout, m.parameters["weight"].layout, m.outputs[0].layout}
    return "contiguous" in layouts and "channels_last" not in layouts


def _fast_elsewhere(m, config):
    """Whether this device has faster kernels for channels_last in this precision."""
    if config.device != "cuda":
        return True
    if m.outputs[0].dtype in LOW:
        return config.capability >= (7, 0)
    return m.outputs[0].dtype == "float32" and config.capability >= (8, 0) and config.switches.get("cudnn.allow_tf32") is not False


def _saw(m, part):
    x, weight = m.inputs[0], m.parameters["weight"]
    of = f", {part:.1%} of the arithmetic".replace("%", " %") if part is not None else ""
    y = m.outputs[0]
    return f"{m.kind} {x.shape[1]} -> {y.shape[1]} channels, input {x.shape} {x.layout}, weight {weight.shape} {weight.layout}, {y.dtype}{of}"


def fix(workload):
    return replace(workload, memory_format="channels_last")


def edit(source):
    """The model in channels_last where it is made. A convolution then converts the images itself, which costs what converting them
    in the loop would."""
    from perfscope.patch import after_model
    return after_model(source, ".to(memory_format=torch.channels_last)") if "import torch\n" in source.text else []


def plant(workload):
    return replace(workload, memory_format="contiguous")
