"""Layout conversions (NCHW to NHWC and back) run around the convolutions.

## What it sees
A trace of a GPU in which kernels that only reorder a tensor (`nchwToNhwcKernel`, `nhwcToNchwKernel`, `batched_transpose_*`,
`transpose_readWrite`, ...) take 5 % or more of the kernel time outside communication: how many, how long, which kernels, which operators launched
them and, where shapes were recorded, with which strides. It works from somebody else's trace. Where the model itself is known and
its tensors are contiguous, conv_not_channels_last says so with the same figures, and this probe is silent.

## Why it is slow
cuDNN and MIOpen have their fast kernels for channels-last. They convert what they get, and convert the result back, at every
convolution of every step: reading and writing whole activations without computing anything. 9.3 % of the kernel time in a ResNet-50 on an A100, 20.7 % outside
communication in a ResNet on an MI300X (the traces of data/README.md).

## Cure
channels_last for model and images: then the tensors are what the kernels want. If they are already, something between the
convolutions changes them back (see layout_breaker).

## Not for
float32 without TF32 and old GPUs, whose kernels want NCHW: there the share is small (0.1 to 0.2 % on a V100), and this is silent. On AMD, MIOpen uses
channels-last kernels only with PYTORCH_MIOPEN_SUGGEST_NHWC=1 in some versions of PyTorch.

## References
SLOW_PATHS S05; pytorch/pytorch#81940 (16.6 % and 15.7 % of the GPU time on an A100); TraceLens, "layout conversions".
"""

import re

from perfscope.evidence import layers
from perfscope.probe import Config, Evidence, Finding, Place, replace

USES = ("trace",)
DEVICES = ("cuda",)
CODE = "model = model.to(memory_format=torch.channels_last); images = images.contiguous(memory_format=torch.channels_last)"
SMALLEST = 0.05             # of the kernel time outside communication, SLOW_PATHS S05
FAMILY = re.compile(r"nchwToNhwc|nhwcToNchw|nchw2nhwc|nhwc2nchw|batched_transpose|transpose_readWrite|convert_tensor_layout|"
                    r"transpose_[NC]+HW2[NC]+HW|SubTensorOpWithScalar", re.I)
CONVOLUTIONS = ("cudnn_convolution", "miopen_convolution", "convolution_backward", "cudnn_convolution_transpose", "cudnn_convolution_backward_input",
                "cudnn_convolution_backward_weight")


def detect(evidence):
    turned = layers.kernels(evidence.trace, lambda r: r.layout)
    if turned.outside < SMALLEST or evidence.modules is not None and evidence.config.memory_format != "channels_last":
        return
    families = {}
    for r in turned.rows:
        families.setdefault(FAMILY.search(r.name).group(0), []).append(r)
    parts = {name: layers.kernels(evidence.trace, rows.__contains__) for name, rows in families.items()}
    places = [Place(name, f"{k.said}{_from(k.rows)}") for name, k in sorted(parts.items(), key=lambda p: -p[1].total_ns)]
    shapes = layers.op_places(evidence.trace, *CONVOLUTIONS, most=4)
    yield Finding("", f"layout conversions around the convolutions: {turned.said}", (*places, *shapes),
                  "put model and input in channels_last" if evidence.config.memory_format != "channels_last" else
                  "find what changes the layout between the convolutions", share=turned.share, basis="ceiling",
                  evidence={**turned.figures, "families": {name: k.figures for name, k in parts.items()},
                            "share_of_convolution": evidence.trace.layout.share_of_convolution if evidence.trace.layout else None},
                  extra={"hint": True} if evidence.config.memory_format == "channels_last" else {})


def _from(rows):
    names = dict.fromkeys(c.name for r in rows for c in r.ops)
    return f", launched by {', '.join(names)}" if names else ""


def fix(workload):
    return replace(workload, memory_format="channels_last")


def examples():
    """Kernels of the trace a100-resnet50-ddp-nchw and of v100-resnet50-fp32, with their launches and nanoseconds."""
    ill = (("void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true, (cudnnKernelDataType_t)2>", 474, 12_616_974, "aten::convolution_backward"),
           ("void cudnn::ops::nhwcToNchwKernel<float, float, float, true, false, (cudnnKernelDataType_t)0>", 159, 2_503_936, "aten::convolution_backward"),
           ("void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_256x64_16x4_nn_align4>", 69, 5_581_360, "aten::cudnn_convolution"),
           ("ncclKernel_AllReduce_RING_LL_Sum_float(ncclDevComm*, unsigned long, ncclWork*)", 15, 46_762_159, "record_param_comms"))
    healthy = (("void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true, (cudnnKernelDataType_t)2>", 35, 817_182, "aten::cudnn_convolution"),
               ("volta_sgemm_64x64_nt", 105, 22_668_122, "aten::convolution_backward"))
    return tuple(Evidence(Config("cuda"), trace=layers.trace_of(*rows)) for rows in (ill, healthy))
