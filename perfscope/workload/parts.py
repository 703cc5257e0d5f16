"""Takes a model apart: makes norm, activation, attention, ... cost nothing while everything else runs as before.

How: while a variant without a part is entered, the ATen operators of that part are overridden at the Autograd and
Autocast dispatch keys with functions that hand their input through (`torch.library`). Every caller goes through the
dispatcher, functional calls and fused modules included, so nothing in the model has to be recognised; autograd,
autocast, torch.compile and CUDA-graph capture all look operators up there. Norms and activations that somebody wrote by
hand (a chain of pow, mean, rsqrt, mul) have no operator of their own: such *modules* are found by name and by what they
do, and their `forward` is replaced. What really ran is counted in `perfscope.workload.census`, so a residue is seen.

An override costs 0.7 us per call, less than dispatching the smallest real operator; `benchmarks/overhead` measures it
and every record says what it came to.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable

import torch

from perfscope.errors import UsageError

#: Parts that are taken away by overriding operators; the others belong to the step (perfscope.workload.step).
OPERATOR_PARTS = ("norm", "activation", "attention", "dropout", "residual", "pooling", "embedding")

NORM = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
NORM_WITH_STATISTICS = ("native_batch_norm", "native_layer_norm", "native_group_norm", "_fused_rms_norm",
                        "_native_batch_norm_legit")
ACTIVATION = ("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardtanh", "hardswish",
              "hardsigmoid", "sigmoid", "tanh", "prelu", "rrelu", "threshold", "softplus", "log_sigmoid")
IN_PLACE_ACTIVATION = ("relu_", "relu6_", "leaky_relu_", "elu_", "celu_", "selu_", "gelu_", "silu_", "mish_",
                       "hardtanh_", "hardswish_", "hardsigmoid_", "sigmoid_", "tanh_", "rrelu_", "threshold_")
SOFTMAX = ("softmax.int", "_softmax", "_safe_softmax")
DROPOUT = ("dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "alpha_dropout_",
           "feature_alpha_dropout", "feature_alpha_dropout_")
POOLING = ("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
           "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
           "max_pool2d_with_indices", "max_pool3d_with_indices")

NORM_NAME = re.compile(r"norm|(^|_)GRN$", re.IGNORECASE)
ACTIVATION_NAME = re.compile(r"relu|gelu|silu|swish|mish|sigmoid|tanh|softplus|activation|celu|selu|elu$", re.IGNORECASE)
DROPOUT_NAME = re.compile(r"drop_?(out|path|block)|stochastic_?depth", re.IGNORECASE)


def hand_through(x, *args, **kwargs):
    """The operator's first argument, as it is."""
    return x


def hand_through_copy(x, *args, **kwargs):
    """A copy of the first argument, for models that would overwrite it."""
    return x.clone()


def hand_through_triple(x, *args, **kwargs):
    """For norms that also give mean and inverse deviation."""
    nothing = x.new_empty(0)
    return x, nothing, nothing


def hand_through_pair(x, *args, **kwargs):
    """For operators that give one thing more."""
    return x, x.new_empty(0)


def hand_through_half(x, dim=-1):
    """For gated linear units: the half that is not the gate."""
    return x.narrow(dim, 0, x.shape[dim] // 2)


class _Attention(torch.autograd.Function):
    """Attention that costs nothing: gives the query, and hands the gradient to query, key and value alike.

    So the projections before and after keep their forward and backward matmuls.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.shapes = query.shape, key.shape, value.shape
        shape = (*query.shape[:-1], value.shape[-1])
        if query.shape == shape:
            return query.view_as(query)
        return value.view_as(value) if value.shape == shape else query.new_ones(()).expand(shape).contiguous()

    @staticmethod
    def backward(ctx, grad):
        return tuple(_fit(grad, shape) for shape in ctx.shapes)


def _fit(grad, shape):
    """`grad` narrowed to `shape` as a view where it is large enough (grouped-query heads), else one number spread."""
    if grad.shape == shape:
        return grad
    if grad.dim() == len(shape) and all(g >= s for g, s in zip(grad.shape, shape)):
        for dim, size in enumerate(shape):
            grad = grad.narrow(dim, 0, size)
        return grad
    return grad.flatten()[:1].view([1] * len(shape)).expand(shape)


def attention(query, key, value, *args, **kwargs):
    """In the place of scaled_dot_product_attention."""
    return _Attention.apply(query, key, value)


def attention_copy(query, key, value, *args, **kwargs):
    """The same with a copy, for models that would overwrite it."""
    return _Attention.apply(query, key, value).clone()


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return a.view_as(a)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class _ResidualInPlace(torch.autograd.Function):
    """For `a += b`: the dispatcher gives `a` back whatever an in-place kernel returns, so `a` itself has to get the history."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.mark_dirty(a)
        return a

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class _Constant(torch.autograd.Function):
    """An operator that costs nothing: a stored output, and a stored gradient for its input."""

    @staticmethod
    def forward(ctx, x, output, grad):
        ctx.grad = grad
        return output.view_as(output)

    @staticmethod
    def backward(ctx, _):
        return ctx.grad, None, None


def _drops(x, p, train=True, *args) -> bool:
    """Whether a dropout call does anything: at p = 0 or outside training it costs nothing and is no part."""
    return bool(train) and p > 0


class Overrides:
    """The operators of some parts, overridden while entered. Never nested; entering takes about 0.2 ms.

    `keep` holds the parts that stay. `copy` makes handed-through tensors copies (for models that then write to them in
    place). `counts`, if given, counts calls per part: for preparation, never while timing.
    """

    def __init__(self, keep, device_type="cpu", *, parts=OPERATOR_PARTS, copy=False, counts=None):
        self.table = {}
        self.counts = counts
        self.device_type, self.copy = device_type, copy
        self.keys = [f"{kind}{device_type.upper()}" for kind in ("Autograd", "Autocast")]
        self.library = None
        self._stored = {}
        through = hand_through_copy if copy else hand_through
        removed = [p for p in parts if p not in keep]
        if "norm" in removed:
            self._put("norm", NORM, through)
            self._put("norm", NORM_WITH_STATISTICS, hand_through_triple)
            self._put("norm", ("_fused_rms_norm",), hand_through_pair)
        if "activation" in removed:
            self._put("activation", ACTIVATION + IN_PLACE_ACTIVATION, through)
            self._put("activation", ("glu",), hand_through_half)
        if "attention" in removed:
            self._put("attention", ("scaled_dot_product_attention",), attention_copy if copy else attention)
            self._put("attention", SOFTMAX, through)
        if "dropout" in removed:
            self._put("dropout", DROPOUT, through, when=_drops)
            self._put("dropout", ("native_dropout",), hand_through_pair, when=_drops)
        if "pooling" in removed:
            for name in POOLING:
                self._put("pooling", (name,), self._constant(name))
        if "embedding" in removed:
            self._put("embedding", ("embedding",), self._constant("embedding", with_grad=False))
        if "residual" in removed:
            self._put_residual()

    def _put(self, part, names, function, when=None):
        for name in names:
            packet, _, overload = name.partition(".")
            if hasattr(getattr(torch.ops.aten, packet, None), overload or "default"):
                # whatever an in-place kernel returns, the dispatcher gives the first argument back: nothing to copy
                own = hand_through if packet.endswith("_") else function
                self.table[name] = self._counted(part, own, when) if self.counts is not None else own

    def _counted(self, part, function, when=None):
        def counted(*args, **kwargs):
            if when is None or when(*args, **kwargs):
                self.counts[part] = self.counts.get(part, 0) + 1
            return function(*args, **kwargs)
        return counted

    def _put_residual(self):
        if not hasattr(torch.library, "get_kernel"):
            raise UsageError("separating residual additions needs torch 2.9 or newer (torch.library.get_kernel)",
                             f"This is torch {torch.__version__}: leave the part 'residual' out.")
        for name in ("add.Tensor", "add_.Tensor"):
            kernel = torch.library.get_kernel(f"aten::{name}", self.keys[0])

            def add(keyset, a, b, alpha=1, kernel=kernel, packet=getattr(torch.ops.aten, name.partition(".")[0])):
                if not isinstance(b, torch.Tensor):             # a Python number: no kernel of add.Tensor takes it boxed
                    return packet.Scalar(a, b, alpha)
                if a.shape == b.shape and a.requires_grad and b.requires_grad \
                        and not (a.is_leaf or b.is_leaf):
                    if packet is torch.ops.aten.add_:
                        return _ResidualInPlace.apply(a, b)
                    out = _Residual.apply(a, b)
                    return out.clone() if self.copy else out
                return kernel.call_boxed(keyset, a, b, alpha=alpha)
            self.table[name] = self._counted("residual", add) if self.counts is not None else add

    def _constant(self, name, with_grad=True):
        def constant(x, *args, **kwargs):
            key = (name, x.shape, x.dtype, x.stride(), tuple(tuple(a.shape) if isinstance(a, torch.Tensor) else str(a)
                                                             for a in args))
            if key not in self._stored:
                with torch._C._AutoDispatchBelowAutograd(), torch.autocast(self.device_type, enabled=False):
                    out = getattr(torch.ops.aten, name)(x.detach(), *args, **kwargs)
                    out, rest = (out, None) if isinstance(out, torch.Tensor) else (out[0], tuple(out[1:]))
                    self._stored[key] = torch.randn_like(out), torch.randn_like(x).mul_(1e-3) if with_grad else None, rest
            stored, grad, rest = self._stored[key]
            out = _Constant.apply(x, stored, grad)
            out = out.clone() if self.copy else out
            return out if rest is None else (out, *rest)
        return constant

    def __enter__(self):
        if self.library is not None:
            raise RuntimeError("operators are overridden already")
        library = torch.library.Library("aten", "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")      # that a registered kernel is overridden is the point
                for name, function in self.table.items():
                    for key in self.keys if not name.startswith("add") else self.keys[:1]:
                        library.impl(name, function, key, with_keyset=name.startswith("add"))
            self._forget()
        except BaseException:                        # Ctrl-C too: nothing may stay overridden
            library._destroy()
            raise
        self.library = library
        return self

    def __exit__(self, *error):
        library, self.library = self.library, None
        library._destroy()
        self._forget()

    def _forget(self):
        """Drops the kernels that PyTorch's Python dispatcher (used while compiling) remembers for these operators."""
        for name in self.table:
            packet, _, overload = name.partition(".")
            getattr(getattr(torch.ops.aten, packet), overload or "default")._dispatch_cache.clear()


# ---------------------------------------------------------------- modules written by hand

@dataclass(frozen=True)
class Handwritten:
    """A module that is a norm, an activation or a dropout without calling an operator that is one."""

    path: str
    part: str
    module: torch.nn.Module = field(repr=False, compare=False)


def candidates(model: torch.nn.Module) -> dict[str, tuple[str, torch.nn.Module]]:
    """Path -> (part, module) of the modules whose class is named like a norm, an activation or a dropout."""
    found = {}
    for path, module in model.named_modules():
        name = type(module).__name__
        if "parametrizations" in path.split(".") or not path:
            continue
        if NORM_NAME.search(name):
            if all(p.dim() <= 1 or p.numel() == max(p.shape) for p in module.parameters()):
                found[path] = "norm", module
        elif ACTIVATION_NAME.search(name) and not list(module.parameters()):
            found[path] = "activation", module
        elif DROPOUT_NAME.search(name) and not list(module.parameters()):
            found[path] = "dropout", module
    return found


def find_handwritten(model: torch.nn.Module, forward: Callable[[], object], device_type="cpu") -> list[Handwritten]:
    """Runs `forward()` once and gives the modules that only a replaced `forward` can take away.

    A module counts if it is named like a norm (or an activation), gives one tensor of its input's shape, and calls no
    norm operator in between; activations that do call one (tanh inside a hand-written GELU) count too, unless that
    operator is all they are.
    """
    modules = candidates(model)
    calls: dict[str, int] = {}
    same_shape: dict[str, bool] = {}
    native: dict[str, bool] = {}
    handles, before = [], {}

    def pre(path, part):
        def hook(module, args):
            before[path] = calls.get(part, 0)
        return hook

    def post(path, part):
        def hook(module, args, output):
            first = next((a for a in args if isinstance(a, torch.Tensor)), None)
            same = isinstance(output, torch.Tensor) and first is not None and output.shape == first.shape
            same = same and not (part == "dropout" and output is first)     # at p = 0 it does nothing: no part
            same_shape[path] = same_shape.get(path, True) and same
            native[path] = native.get(path, False) or calls.get(part, 0) > before[path]
        return hook

    for path, (part, module) in modules.items():
        handles += [module.register_forward_pre_hook(pre(path, part)), module.register_forward_hook(post(path, part))]
    try:
        with torch.no_grad(), Overrides((), device_type, parts=("norm", "activation", "dropout"), counts=calls):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return [Handwritten(path, part, module) for path, (part, module) in modules.items()
            if same_shape.get(path) and (not native.get(path) or part == "activation" and not _is_torch(module))]


def _is_torch(module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


@contextmanager
def without_modules(model: torch.nn.Module, handwritten: list[Handwritten], removed, out_of_place=False):
    """While entered: hand-written modules of the removed parts hand their input through, batch counters stand still.

    `out_of_place` makes the activations and dropouts that stay write to new tensors.
    """
    patched = [h.module for h in handwritten if h.part in removed]
    counters = [m for m in model.modules() if m._buffers.get("num_batches_tracked") is not None] if "norm" in removed else []
    buffers = [m._buffers["num_batches_tracked"] for m in counters]
    own = [m.__dict__.get("forward") for m in patched]
    writing = [m for m in model.modules() if out_of_place and getattr(m, "inplace", False) is True]
    try:
        for module in writing:
            module.inplace = False
        for module in patched:
            module.forward = hand_through
        for module in counters:
            module._buffers["num_batches_tracked"] = None
        yield
    finally:
        for module in writing:
            module.inplace = True
        for module, forward in zip(patched, own):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        for module, buffer in zip(counters, buffers):
            module._buffers["num_batches_tracked"] = buffer
