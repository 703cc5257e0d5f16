"""Convolutions on contiguous (NCHW) tensors: their fast kernels want channels_last.

## What it sees
4-d or 5-d convolutions of which neither input nor weight is channels_last.

## Why it is slow
Tensor Core kernels and oneDNN's blocked kernels work channels-last. With contiguous tensors the library converts around each
convolution, or takes a slower kernel.

## Cure
model.to(memory_format=torch.channels_last), and the same for the input.

## Not for
Grouped or 3-d convolutions with few channels, networks with instance norm, float32 on old GPUs: it can be slower there, so
this is a lead until `fix` has timed it.

## References
SLOW_PATHS S05, S07; PyTorch tutorial "Channels Last Memory Format in PyTorch"; pytorch/pytorch#81940.
"""

from perfscope.probe import Finding, Place, replace

USES = ("model",)
CODE = "model = model.to(memory_format=torch.channels_last); images = images.contiguous(memory_format=torch.channels_last)"
KINDS = ("Conv2d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d")


def detect(evidence):
    calls = [c for c in evidence.of(*KINDS) if c.inputs and "weight" in c.parameters]
    plain = [c for c in calls if c.inputs[0].layout == "contiguous" and c.parameters["weight"].layout in ("contiguous", "both")]
    if not plain or evidence.config.memory_format == "channels_last":
        return
    places = tuple(Place(c.path, f"{c.kind} input {c.inputs[0].shape} and weight {c.parameters['weight'].shape}, {c.inputs[0].dtype}, both contiguous")
                   for c in plain)
    yield Finding("", f"{len(plain)} of {len(calls)} convolutions run on contiguous tensors", places,
                  "put model and input in channels_last", share=evidence.time_share("convolution", "convolution_backward", "mkldnn_convolution",
                                                                                     "cudnn_convolution"), basis="ceiling")


def fix(workload):
    return replace(workload, memory_format="channels_last")


def plant(workload):
    return replace(workload, memory_format="contiguous")
