"""channels_last makes layers slower here that are faster on contiguous tensors.

## What it sees
Layers that are known to dislike channels_last and get it: group norm, instance norm, softmax over channels, grouped and 3-d convolutions, and on
GPUs float32 convolutions without TF32 or before Volta. It speaks only if timing them alone, forward and backward, in both layouts
says that the whole interval is on the side of contiguous, by 10 % of their time and 1 % of the step or more.

## Why it is slow
PyTorch has a kernel for the layout that gathers what lies apart, or none and converts. On a CPU (torch 2.13, one core, AVX-512) group norm on
(8, 64, 32, 32) took 3.2 times as long in float32 and 25 times in bfloat16, instance norm 2.6 to 3.3 times, softmax over channels 3.2 times.

## Cure
islands: only these layers run on contiguous tensors, converted before and behind them. contiguous: the whole model does. Which one is
better is for the whole step to say.

## Not for
Deciding about ordinary convolutions: conv_not_channels_last does that.

## References
SLOW_PATHS S07; pytorch/pytorch#34977 (grouped convolutions), #44943, #50036, #59168; measured for the figures above: probe's own timing of the
layers, process time, best of five.
"""

from functools import partial

from perfscope.evidence import layers
from perfscope.probe import Finding, Place, add, replace

USES = ("model",)
CODE = "y = norm(x.contiguous()).contiguous(memory_format=torch.channels_last)     # or leave channels_last out altogether"
NORMS = ("GroupNorm", "InstanceNorm2d", "InstanceNorm3d")
SOFTMAX = ("Softmax", "LogSoftmax", "Softmax2d")
COPIES = ("clone", "copy_", "_to_copy", "empty_like", "detach", "view", "alias")
MARGIN = 0.1                # of the layers' time: beyond what two timings of the same thing differ by on a busy machine
SMALLEST = 0.01             # of the step, METHOD 8


def detect(evidence):
    suspects = {}
    for m in evidence.modules or ():
        if m.leaf and len(m.inputs) == 1 and m.inputs[0].layout == "channels_last" and not _converts(m, evidence) and (why := _why(m, evidence.config)):
            suspects.setdefault((m.path, m.inputs[0].shape), (m, why))
    if not suspects:
        return
    calls = sorted((m for m, _ in suspects.values()), key=lambda m: -m.inputs[0].numel)
    for timed in (calls, calls[:1]):        # all, or if that takes too long the largest: then the saving is a lower bound
        saves = layers.saved(evidence, timed, contiguous)
        if saves is not None:
            break
    taken = saves.extra.get("share", 0.0) if saves is not None else 0.0
    if saves is None or not saves.low > max(SMALLEST, MARGIN * taken):
        return
    places = tuple(Place(m.path, f"{m.kind} {m.inputs[0].shape} {m.inputs[0].dtype} in channels_last: {why}") for m, why in suspects.values())
    which = "alone they take" if len(timed) == len(places) else "the largest, alone, takes"
    text = f"channels_last makes {len(places)} layers slower here: {which} {taken:.1%} of the step, contiguous {saves.point:.1%} less"
    yield Finding("", text.replace("%", " %"),
                  places, "run these layers, or the whole model, on contiguous tensors", share=taken, basis="alone", saves=saves,
                  evidence={"layers": len(places), "timed": [m.path for m in timed], "kinds": sorted({m.kind for m, _ in suspects.values()})})


def _converts(m, evidence):
    """Whether a hook of the layer's own converts its input, so that what computes in it sees a contiguous one."""
    seen = [o.inputs[0].layout for o in evidence.ops or () if o.module == m.path and o.inputs and o.inputs[0].shape == m.inputs[0].shape
            and o.name not in COPIES]
    return bool(seen) and "channels_last" not in seen


def _why(m, config):
    """Why this layer may dislike channels_last; "" if there is no reason to think so."""
    if m.kind in NORMS:
        return "it normalises over pixels, whose values lie apart in this layout"
    if m.kind in SOFTMAX and (m.kind == "Softmax2d" or m.args.get("dim") in (1, -3)):
        return "softmax over channels goes to a kernel for contiguous tensors"
    if m.kind.startswith("Conv"):
        if len(m.inputs[0].shape) == 5:
            return "3-d convolution"
        if 1 < m.args.get("groups", 1) < m.inputs[0].shape[1]:
            return f"grouped convolution ({m.args['groups']} groups)"
        if config.device == "cuda" and m.outputs and m.outputs[0].dtype == "float32" \
                and (config.capability < (8, 0) or config.switches.get("cudnn.allow_tf32") is False):
            return "float32 without Tensor Cores"
        if config.device == "cuda" and config.capability < (7, 0):
            return "a GPU without Tensor Cores"
    return ""


def contiguous(layer, x):
    """The layer and its input on contiguous tensors."""
    import torch
    return layer.to(memory_format=torch.contiguous_format), x.contiguous()


def islands(model):
    """Norms and softmaxes that dislike channels_last run on contiguous tensors; what follows gets channels_last again."""
    import torch
    kinds, last = (torch.nn.GroupNorm, torch.nn.InstanceNorm2d, torch.nn.Softmax2d), torch.channels_last

    def converting(usual, x):
        if x.dim() == 4 and x.is_contiguous(memory_format=last) and not x.is_contiguous():
            return usual(x.contiguous()).contiguous(memory_format=last)
        return usual(x)
    for m in model.modules():
        if isinstance(m, kinds) or isinstance(m, (torch.nn.Softmax, torch.nn.LogSoftmax)) and m.dim in (1, -3):
            m.forward = partial(converting, m.forward)      # not hooks: two of them cost as much as a small norm


CURES = {
    "islands": lambda workload: add(workload, on_model=[islands]),
    "contiguous": lambda workload: replace(workload, memory_format="contiguous"),
}


def group_norms(model, island=False):
    """Group norm in the place of every batch norm of the model's own children; `island`: one that computes on contiguous tensors."""
    import torch

    class Island(torch.nn.GroupNorm):
        def forward(self, x):
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
    for name, m in list(model.named_children()):
        if isinstance(m, torch.nn.BatchNorm2d):
            setattr(model, name, (Island if island else torch.nn.GroupNorm)(m.num_features // 4, m.num_features))


def healthy(workload):
    """Group norms that were written to compute on contiguous tensors, in a network in channels_last."""
    return add(workload, on_model=[partial(group_norms, island=True)], memory_format="channels_last")


def plant(workload):
    """A clean network with group norms, in channels_last."""
    return add(workload, on_model=[group_norms], memory_format="channels_last")
