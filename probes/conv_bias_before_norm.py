"""A bias right before a batch norm: the norm takes it out again.

## What it sees
Convolutions and linear layers with a bias whose only consumer is a batch norm in training mode: by tracing the model with torch.fx, and
where it cannot be traced, neighbours in an nn.Sequential.

## Why it is slow
Batch norm subtracts the mean, and the bias with it, so the bias changes nothing and its gradient is zero but for rounding. It costs an addition to every
output (free where the library fuses it), and in the backward pass a sum over the whole gradient of the activation.

## Cure
bias=False, with the bias taken off the norm's running mean, so that evaluation gives the same as before too. In training the result
is the same up to rounding.

## Not for
Norms in evaluation mode: there the bias counts. Activations that something else reads before the norm. The gain is small: one reduction
per layer.

## References
SLOW_PATHS S09; PyTorch performance tuning guide, "Disable bias for convolutions directly followed by a batch norm".
"""

from perfscope.evidence import layers
from perfscope.probe import Finding, Place, add

USES = ("model",)
CODE = "nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)         # followed by nn.BatchNorm2d(c_out)"


def detect(evidence):
    root = next((m.module for m in evidence.modules or () if m.path == "" and m.module is not None), None)
    if root is None:
        return
    paths = {module: path for path, module in root.named_modules()}
    calls = {m.path: m for m in evidence.modules}
    found = [(calls.get(paths[a]), paths[b]) for a, b in pairs(root)]
    found = [(call, norm) for call, norm in found if call is not None and call.outputs and norm in calls]
    if not found:
        return
    places = tuple(Place(call.path, f"{call.kind} with a bias of {call.parameters['bias'].numel}, output {call.outputs[0].shape} {call.outputs[0].dtype}, "
                                    f"read by {norm} ({calls[norm].kind}, training) alone") for call, norm in found)
    yield Finding("", f"{len(found)} layers add a bias that the batch norm behind them takes out again", places, "make them with bias=False",
                  saves=layers.saved(evidence, [call for call, _ in found], _without),
                  evidence={"layers": len(found), "summed_bytes": sum(call.outputs[0].bytes for call, _ in found)})


def _without(layer, x):
    layer.bias = None
    return layer, x


def pairs(model):
    """(layer with a bias, batch norm in training mode that alone reads its output) of a model, as far as that is certain."""
    import torch
    from torch import fx
    biased = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    norms = torch.nn.modules.batchnorm._BatchNorm

    def fits(a, b):
        return isinstance(a, biased) and a.bias is not None and isinstance(b, norms) and b.training

    class Tracer(fx.Tracer):
        """Batch norms of other packages are one node too."""

        def is_leaf_module(self, module, name):
            return super().is_leaf_module(module, name) or isinstance(module, (*biased, norms))
    try:
        graph = Tracer().trace(model)
    except Exception:       # control flow on values, packed inputs, ...: whatever the user's code does that fx cannot follow
        return _neighbours(model, fits)
    modules = dict(model.named_modules())
    nodes = {}
    for node in graph.nodes:
        if node.op == "call_module":
            nodes.setdefault(modules[node.target], []).append(node)
    found = []
    for a, calls in nodes.items():
        if len(calls) == 1 and len(calls[0].users) == 1:
            user = next(iter(calls[0].users))
            b = modules[user.target] if user.op == "call_module" else None
            if b is not None and fits(a, b) and len(nodes[b]) == 1:
                found.append((a, b))
    return found


def _neighbours(model, fits):
    import torch
    every = [list(m.children()) for m in model.modules() if type(m) is torch.nn.Sequential]
    return [(a, b) for children in every for a, b in zip(children, children[1:]) if fits(a, b)]


def without_bias(model):
    """The model without these biases. ValueError if it has none that is certain to be of no use."""
    import torch
    found = pairs(model)
    if not found:
        raise ValueError("no bias before a batch norm that is certain to be of no use")
    for layer, norm in found:
        if norm.running_mean is not None:
            with torch.no_grad():
                norm.running_mean -= layer.bias.to(norm.running_mean.dtype)
        layer.bias = None


def fix(workload):
    return add(workload, on_model=[without_bias])


def biased(model):
    """Every convolution has a bias."""
    import torch
    for m in model.modules():
        if isinstance(m, torch.nn.Conv2d) and m.bias is None:
            m.bias = torch.nn.Parameter(torch.linspace(-1, 1, m.out_channels, dtype=m.weight.dtype, device=m.weight.device))


def plant(workload):
    return add(workload, on_model=[biased])
