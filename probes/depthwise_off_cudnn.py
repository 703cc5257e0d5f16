"""Depthwise convolutions run on PyTorch's own kernels; cuDNN's may be faster.

## What it sees
Convolutions with as many groups as channels for which PyTorch says that it picks CudaDepthwise2d or CudaDepthwise3d; in a trace
`_conv_depthwise2d` operators and conv_depthwise2d kernels that take one per cent of the kernels' time or more.

## Why it is slow
PyTorch sends a depthwise convolution to cuDNN only under narrow conditions (type, layout, kernel size); its own kernels read with
little reuse. Which is faster depends on the shape: 0.64 to 5.75 times over many shapes, 1.2 to 1.3 in the geometric mean.

## Cure
channels_last; or, since torch 2.13, torch.backends.cudnn.depthwise_kernel = "cudnn". Each is tried.

## Not for
Small images and float32, where PyTorch's own kernels often win: keep only what `fix` measured.

## References
SLOW_PATHS S14; pytorch/pytorch#91735; aten/src/ATen/native/Convolution.cpp (use_cudnn_depthwise).
"""

from perfscope.probe import Config, Evidence, Finding, OpCall, Place, Tensor, add, replace, setting

USES = ("ops", "trace")
DEVICES = ("cuda",)
CODE = """model = model.to(memory_format=torch.channels_last); images = images.contiguous(memory_format=torch.channels_last)
torch.backends.cudnn.depthwise_kernel = "cudnn"      # or this, since torch 2.13"""
OWN = ("CudaDepthwise2d", "CudaDepthwise3d")
IN_TRACE = ("aten::_conv_depthwise2d", "aten::conv_depthwise3d")
SHARE = 0.01                # the smallest change that matters (METHOD 8)


def detect(evidence):
    trace = evidence.trace
    rows = [r for r in trace.ops if r.name in IN_TRACE] if trace is not None else []
    kernels = [k for k in trace.kernels if "conv_depthwise" in k.name] if trace is not None else []
    share = sum(k.total_ns for k in kernels) / trace.kernels_ns if trace is not None and trace.kernels_ns else None
    if share is not None and share < SHARE:
        return
    places = tuple(Place(o.module or o.line or "convolution", f"backend {b}: input {o.inputs[0].shape} {o.inputs[0].dtype} {o.inputs[0].layout}, weight "
                         f"{o.inputs[1].shape}, groups {o.args.get('groups')}, stride {o.args.get('stride')}")
                   for o in evidence.calls("convolution") if (b := evidence.backend("convolution_call", o)) in OWN)
    if not places:
        places = tuple(Place(r.name, f"{r.count} calls{', inputs ' + r.shapes if r.shapes else ''}") for r in rows)
    if not places:
        return
    yield Finding("", f"{len(places)} depthwise convolution{'s' * (len(places) > 1)} run on PyTorch's own kernels, not cuDNN's", places,
                  "try channels_last, and cuDNN's kernel for them", share=share, basis="" if share is None else "ceiling",
                  evidence={"kernels": sorted({k.name for k in kernels})})


def channels_last(workload):
    return replace(workload, memory_format="channels_last")


def cudnn(workload):
    """Since torch 2.13; before, it is not applicable."""
    import torch
    if not hasattr(torch.backends.cudnn, "depthwise_kernel"):
        raise ValueError(f"torch {torch.__version__} has no torch.backends.cudnn.depthwise_kernel (2.13 has)")
    return add(workload, contexts=[setting(torch.backends.cudnn, depthwise_kernel="cudnn")])


CURES = {"channels_last": channels_last, "cudnn": cudnn}


def plant(workload):
    """The second convolution made depthwise, in NCHW."""
    from torch import nn

    def depthwise(model):
        wide = model.conv2.in_channels
        model.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False).to(next(model.parameters()))
    return add(replace(workload, memory_format="contiguous"), on_model=[depthwise])


def examples():
    """A depthwise convolution of which PyTorch says CudaDepthwise2d, and the same one with Cudnn."""
    def seen(backend):
        image, weight = Tensor((64, 96, 28, 28), "float16", (75264, 784, 28, 1), "cuda"), Tensor((96, 1, 3, 3), "float16", (9, 9, 3, 1), "cuda")
        call = OpCall("convolution", (image, weight), (image,), {"groups": 96, "stride": [1, 1], "transposed": False}, module="block.depthwise")
        return Evidence(Config("cuda", "NVIDIA A100-SXM4-80GB", (8, 0), torch="2.13.0", dtype="amp-half"), ops=(call,),
                        backend=lambda question, *args, **options: backend if question == "convolution_call" else None)
    return seen("CudaDepthwise2d"), seen("Cudnn")
