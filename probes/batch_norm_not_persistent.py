"""cuDNN's batch norm gets contiguous (NCHW) tensors, for which it has no persistent kernel.

## What it sees
Batch norms in training on a GPU, float16 with float32 weights (so cuDNN takes them), whose input is contiguous. In a trace, the
kernels `cudnn::bn_fw_tr_1C11...` and `cudnn::bn_bw_1C11...` on `__half`, where channels_last has `..._nhwc_semiPersist`.

## Why it is slow
PyTorch asks cuDNN for CUDNN_BATCHNORM_SPATIAL_PERSISTENT only in training and only for channels_last; cuDNN's semi-persistent kernel
wants half precision in that layout. It reads the tensor once and keeps it on the chip; the ordinary kernel reads it twice.

## Cure
channels_last for model and images.

## Not for
float32: cuDNN has no persistent kernel for it. PyTorch's source notes accuracy losses of the persistent mode in ResNeXt-101 and
R(2+1)D, which is why it keeps away from it for contiguous tensors: the numerics check of `fix` matters here.

## References
SLOW_PATHS S04; aten/src/ATen/native/cudnn/BatchNorm.cpp, getCudnnBatchNormMode; cuDNN API reference,
cudnnBatchNormalizationForwardTrainingEx; pytorch/pytorch#59129.
"""

import re

from perfscope.evidence import layers, norms
from perfscope.probe import Config, Evidence, Finding, ModuleCall, Tensor, replace

USES = ("model", "trace")
DEVICES = ("cuda",)
ALSO = ("conv_not_channels_last",)          # the convolutions around such norms are contiguous too
CODE = "model = model.to(memory_format=torch.channels_last); images = images.contiguous(memory_format=torch.channels_last)"
KERNELS = re.compile(r"cudnn::\w*(?:::)?bn_(fw_tr|bw)_1C11\w*<__half")
CURE = "put model and input in channels_last"
TEXT = "batch norms in half precision get contiguous tensors, for which cuDNN has no persistent kernel"


def detect(evidence):
    if evidence.modules is None:
        ran = layers.kernels(evidence.trace, lambda r: KERNELS.search(r.name))
        if ran.count:
            yield Finding("", f"{TEXT}: {ran.said}", tuple(layers.kernel_places(ran)), CURE, share=ran.share, basis="ceiling", evidence=ran.figures)
        return
    seen = norms.batch_norms(evidence)
    ill = [n for n in seen if n.backend == "Cudnn" and n.call.training and n.input.dtype == "float16" and len(n.input.shape) == 4
           and n.input.layout == "contiguous"]
    if not ill:
        return
    share = evidence.time_share("cudnn_batch_norm", "cudnn_batch_norm_backward")
    yield Finding("", f"{len(ill)} of {len(seen)} {TEXT}", tuple(n.place for n in ill), CURE, share=share, basis="ceiling" if share is not None else "",
                  saves=layers.saved(evidence, [n.call for n in ill], _channels_last), evidence={"norms": len(ill), "of": len(seen)})


def _channels_last(norm, x):
    import torch
    return norm, x.contiguous(memory_format=torch.channels_last)


def fix(workload):
    return replace(workload, memory_format="channels_last")


def plant(workload):
    return replace(workload, dtype="amp-half", memory_format="contiguous")


def examples():
    def norm(strides):
        x = Tensor((256, 64, 32, 32), "float16", strides, "cuda", requires_grad=True)
        vector = Tensor((64,), "float32", (1,), "cuda", requires_grad=True)
        call = ModuleCall("layer1.norm", "BatchNorm2d", (x,), (x,), {n: vector for n in ("weight", "bias", "running_mean", "running_var")})
        return Evidence(Config("cuda", "NVIDIA H100", (9, 0), torch="2.13.0", dtype="amp-half"), modules=(call,))
    return norm((65536, 1024, 32, 1)), norm((65536, 1, 2048, 64))
