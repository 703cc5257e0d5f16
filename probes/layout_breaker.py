"""A module turns channels_last tensors into contiguous ones, and the next convolution turns them back.

## What it sees
By walking the strides of one forward pass in the order of execution: the first operator that is given a channels_last tensor and
gives back a contiguous one (operators that only give another view of the same memory do not count), provided that a convolution in
channels_last gets a contiguous or sliced input later. With its module, its source line and what it cost: the bytes that have to be converted.
Further breakers and the convolutions that convert follow.

## Why it is slow
Two copies of an activation per break, forward and backward, and everything in between runs in the layout that was not meant. What breaks
it: instance norm, softmax over channels, `torch.cat` with a contiguous tensor, reshape and transpose shuffles, `.contiguous()`.

## Cure
Convert once, right at the break: a forward hook gives the output of each module that breaks the layout in channels_last again, so that
normalisation, activation and pooling behind it are back in the layout. Better still, replace the operator (GroupNorm for instance
norm, `.contiguous(memory_format=torch.channels_last)` for `.contiguous()`). convert: the hooks. keep: `.contiguous()` leaves tensors
in channels_last as they are, and hooks convert behind what breaks the layout still; it fails where a `.view` needs what it was called for.

## Not for
A break right before the head, with no convolution behind it. If the break and the convolution are in one forward function, no hook comes between
them: then this is a hint with the line to change.

## References
SLOW_PATHS S06 (which operators break and which keep the layout, torch 2.13); pytorch/pytorch#59168 (nnU-Net is faster without).
"""

from contextlib import contextmanager
from functools import partial

from perfscope.probe import Finding, Place, add

USES = ("ops",)
CODE = "y = y.contiguous(memory_format=torch.channels_last)     # right after the operator that breaks the layout"
VIEWS = {"permute", "transpose", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "slice", "select", "as_strided", "detach", "alias",
         "split", "split_with_sizes", "chunk", "narrow", "unbind", "t"}
CONVERTED = ("contiguous", "other")


def detect(evidence):
    forward = [o for o in evidence.ops or () if o.phase == "forward"]
    breaks = [i for i, o in enumerate(forward) if _breaks(o)]
    turned = [(i, o) for i, o in enumerate(forward) if o.name == "convolution" and len(o.inputs) > 1 and o.inputs[0].layout in CONVERTED
              and o.inputs[1].layout != "contiguous" and any(b < i for b in breaks)]
    breaks = [forward[i] for i in breaks if turned and i < turned[-1][0]]
    if not breaks:
        return
    kinds = {m.path: m.kind for m in evidence.modules or ()}
    first = breaks[0]
    back = sum(o.inputs[0].bytes for _, o in turned)
    places = [Place(_where(o), f"{o.name} in {kinds.get(o.module, 'the model')} turns channels_last {o.outputs[0].shape} {o.outputs[0].dtype} into contiguous"
                    + (f", at {o.line}" if o.line else "")) for o in breaks]
    places += [Place(_where(o), f"convolution in channels_last gets {o.inputs[0].shape} {o.inputs[0].dtype} {o.inputs[0].layout} "
                     f"(strides {o.inputs[0].strides}), and converts it") for _, o in turned]
    hooks_help = all(not _inside(o.module, first.module) for _, o in turned[:1])
    yield Finding("", f"{_where(first)} is the first of {len(breaks)} to turn channels_last into contiguous; {len(turned)} convolutions turn it back",
                  tuple(places), "convert back right at the break, or replace the operator that breaks the layout",
                  evidence={"first": _where(first), "operator": first.name, "line": first.line, "breaks": len(breaks), "converted": len(turned),
                            "converted_bytes": back}, extra={} if hooks_help else {"hint": True})


def _breaks(o):
    if o.name in VIEWS or not o.outputs or o.outputs[0].layout != "contiguous":
        return False
    return any(t.layout == "channels_last" and not t.parameter and len(t.shape) == len(o.outputs[0].shape) for t in o.inputs)


def _where(o):
    return o.module or o.line or "the model's own forward"


def _inside(module, parent):
    return not parent or module == parent or module.startswith(parent + ".")


def keep_layout(model):
    """Every module that is given channels_last and gives contiguous gives channels_last from now on. The first call of each module
    finds out; those that keep the layout are left alone from then on."""
    import torch

    def is_last(t):
        return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()

    def watch(module, handles):
        def hook(_, args, output):
            broken = isinstance(output, torch.Tensor) and output.dim() == 4 and output.is_contiguous() and not is_last(output) \
                and min(output.shape[1], output.shape[2] * output.shape[3]) > 1 and any(isinstance(a, torch.Tensor) and is_last(a) for a in args)
            if broken:
                return output.contiguous(memory_format=torch.channels_last)
            for handle in handles:
                handle.remove()
        handles.append(module.register_forward_hook(hook))
    for module in model.modules():
        if module is not model:
            watch(module, [])


@contextmanager
def contiguous_keeps():
    """Within, x.contiguous() gives x itself where it is dense in channels_last."""
    import torch
    usual, last = torch.Tensor.contiguous, torch.channels_last

    def contiguous(x, *args, **kwargs):
        return x if not args and not kwargs and x.dim() == 4 and x.is_contiguous(memory_format=last) else usual(x, *args, **kwargs)
    torch.Tensor.contiguous = contiguous
    try:
        yield
    finally:
        del torch.Tensor.contiguous
        if torch.Tensor.contiguous is not usual:            # it was somebody else's, not what the base class has
            torch.Tensor.contiguous = usual


def convert(workload):
    return add(workload, on_model=[keep_layout])


def keep(workload):
    return add(workload, on_model=[keep_layout], contexts=[contiguous_keeps])


CURES = {"keep": keep, "convert": convert}


def made_dense(model, **options):
    """The first batch norm gives dense tensors: output.contiguous(**options)."""
    import torch
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.register_forward_hook(lambda module, args, output: output.contiguous(**{k: getattr(torch, v) for k, v in options.items()}))


def healthy(workload):
    """Made dense in the layout that it has."""
    return add(workload, on_model=[partial(made_dense, memory_format="channels_last")])


def plant(workload):
    """Made contiguous, as `.contiguous()` does if nobody says otherwise."""
    return add(workload, on_model=[made_dense])
