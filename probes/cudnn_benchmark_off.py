"""cuDNN chooses its convolution algorithms by rule of thumb, although the shapes never change.

## What it sees
torch.backends.cudnn.benchmark is False, cuDNN is on, convolutions run on it, every batch that was seen has the same shape, and
convolutions take a fifth of the step or more (where a trace tells).

## Why it is slow
Without benchmark mode cuDNN's heuristics pick an algorithm per shape, without running it; they can be wrong by a factor. In
benchmark mode the algorithms are timed once per new shape, and the fastest one is kept.

## Cure
torch.backends.cudnn.benchmark = True, before the first step.

## Not for
Inputs whose shapes change: every new shape is timed anew. The first step takes longer, the search needs workspace, and two runs
may pick different algorithms, whose sums differ in the last bits.

## References
SLOW_PATHS S11; pytorch/pytorch#146096; PyTorch "Performance Tuning Guide", "Enable cuDNN auto-tuner".
"""

from perfscope.evidence.precision import CONVOLUTION_OPS
from perfscope.probe import Config, Evidence, Finding, OpCall, Place, Tensor, add, setting

USES = ("ops",)
DEVICES = ("cuda",)
CODE = "torch.backends.cudnn.benchmark = True"
SHARE = 0.2                 # SLOW_PATHS S11
ON_CUDNN = ("Cudnn", "CudnnTranspose", "Miopen", "MiopenTranspose", "MiopenDepthwise")     # MIOpen's search hangs on the same switch


def detect(evidence):
    c = evidence.config
    if c.switches.get("cudnn.benchmark") is not False or c.switches.get("cudnn.enabled") is False or c.loader.get("shapes", 1) > 1:
        return
    asked = [(o, evidence.backend("convolution_call", o)) for o in evidence.calls("convolution")]
    chosen = [(o, b) for o, b in asked if b is None or b in ON_CUDNN]
    share = evidence.time_share(*CONVOLUTION_OPS)
    if not chosen or share is not None and share < SHARE:
        return
    places = tuple(Place(o.module or o.line or "convolution", f"input {o.inputs[0].shape} {o.inputs[0].dtype} {o.inputs[0].layout}, weight "
                         f"{o.inputs[1].shape}, backend {b or 'not asked'}: algorithm by heuristics") for o, b in chosen)
    shapes = len({(o.inputs[0].shape, o.inputs[1].shape, o.inputs[0].dtype) for o, _ in chosen})
    yield Finding("", f"cuDNN picks the algorithms of {len(chosen)} convolutions without trying them, though their {shapes} shapes never change", places,
                  "switch cudnn.benchmark on", share=share, basis="" if share is None else "ceiling",
                  evidence={"convolutions": len(chosen), "shapes": shapes, "cudnn.benchmark": False})


def fix(workload):
    import torch
    return add(workload, contexts=[setting(torch.backends.cudnn, benchmark=True)])


def plant(workload):
    import torch
    return add(workload, contexts=[setting(torch.backends.cudnn, benchmark=False)])


def examples():
    """A convolution in half, channels_last, on a GPU: benchmark mode off and on."""
    def seen(on):
        image, weight = (Tensor((64, 64, 32, 32), "float16", (65536, 1, 2048, 64), "cuda"), Tensor((128, 64, 3, 3), "float16", (576, 1, 192, 64), "cuda"))
        call = OpCall("convolution", (image, weight), (Tensor((64, 128, 32, 32), "float16", (131072, 1, 4096, 128), "cuda"),),
                      {"groups": 1, "transposed": False}, module="conv1")
        switches = {"cudnn.enabled": True, "cudnn.benchmark": on, "cudnn.deterministic": False}
        return Evidence(Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0", dtype="amp-half", memory_format="channels_last",
                               switches=switches), ops=(call,))
    return seen(False), seen(True)
