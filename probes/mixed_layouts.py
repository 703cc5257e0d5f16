"""Model and images are in different layouts, so convolutions convert one of them at every step.

## What it sees
The layouts of each convolution's input and weight where they disagree: weights in channels_last that get contiguous images (no tensor
before them was channels_last, so no layer is to blame: see layout_breaker for that), or contiguous weights that get channels_last activations.

## Why it is slow
A convolution runs in channels_last if either operand is. The other one is converted, every time: a copy of the images, or of every
weight, forward and backward. With contiguous weights the gradients come in another layout than the weights, too.

## Cure
Both in channels_last: the model once, before the optimizer and DistributedDataParallel are made, and the images in the loader.

## Not for
1x1 convolutions and images of one channel, whose memory is the same in both layouts: they are not reported.

## References
SLOW_PATHS S08; aten/src/ATen/native/ConvUtils.h, cudnn_conv_suggest_memory_format and mkldnn's; PyTorch tutorial
"Channels Last Memory Format in PyTorch".
"""

from perfscope.probe import Finding, Place, add, replace

USES = ("model",)
CODE = "model = model.to(memory_format=torch.channels_last); images = images.contiguous(memory_format=torch.channels_last)"
KINDS = ("Conv2d", "ConvTranspose2d")


def detect(evidence):
    images, weights, seen_last = [], [], False
    for m in evidence.modules or ():
        x = m.inputs[0] if m.inputs else None
        if m.kind in KINDS and x is not None and "weight" in m.parameters:
            weight = m.parameters["weight"]
            if x.layout == "contiguous" and weight.layout == "channels_last" and not seen_last:
                images.append(m)
            if x.layout == "channels_last" and weight.layout == "contiguous":
                weights.append(m)
        seen_last = seen_last or m.leaf and any(t.layout == "channels_last" for t in m.outputs)
    share = evidence.time_share("convolution", "convolution_backward", "mkldnn_convolution", "cudnn_convolution") if images or weights else None
    for ill, what, moved in ((images, "weights are channels_last, images contiguous", sum(m.inputs[0].bytes for m in images)),
                             (weights, "weights are contiguous, activations channels_last", sum(m.parameters["weight"].bytes for m in weights))):
        if ill:
            yield Finding("", f"{len(ill)} convolution{'s convert' if len(ill) > 1 else ' converts'} an operand at every step: {what}",
                          tuple(Place(m.path, _saw(m)) for m in ill), "put model and input in channels_last, both", share=share,
                          basis="ceiling" if share is not None else "", evidence={"convolutions": len(ill), "converted_bytes": moved})


def _saw(m):
    x, weight = m.inputs[0], m.parameters["weight"]
    return f"{m.kind} input {x.shape} {x.layout} (strides {x.strides}), weight {weight.shape} {weight.layout}, {x.dtype}"


def fix(workload):
    return replace(workload, memory_format="channels_last")


def model_only(model):
    """The model in channels_last."""
    import torch
    model.to(memory_format=torch.channels_last)


def plant(workload):
    return add(workload, on_model=[model_only], memory_format="contiguous")
