"""Keeps a stripped variant sane, and checks that its time means what it says (METHOD section 9, guards).

Without its norms a network's activations vanish or explode within a few layers; then half precision overflows and
processors meet subnormal numbers, which they multiply many times slower. So the weights of such a variant are rescaled
by powers of two (exact, undone when the variant is left) until each convolution and matmul gives values of about the
size that a normed one would. `observe` then measures what the guards need: standard deviations, zeros, dtypes, layouts.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from perfscope.record import Guard
from perfscope.workload.step import Batches, Prepared, VariantStep, autocast, call_model, loss_value, scale

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MATMULS = (F.linear, torch.addmm, torch.matmul, torch.Tensor.matmul, torch.mm, torch.bmm, torch.baddbmm)
LOW, HIGH = 0.1, 10.0        # METHOD section 9
LARGEST = 2.0 ** 10          # per weight; keeps half-precision weights finite and exact


@dataclass
class Seen:
    """What one forward pass showed, per call of a convolution or matmul, in order."""

    std: list = field(default_factory=list)
    zeros: list = field(default_factory=list)
    dtypes: set = field(default_factory=set)
    layouts: set = field(default_factory=set)
    scales: dict = field(default_factory=dict)


class Observer(TorchFunctionMode):
    """Watches convolutions and matmuls; given a stack, multiplies their weights by the power of two they need until it unwinds."""

    def __init__(self, rescale: contextlib.ExitStack | None = None):
        super().__init__()
        self.rescale, self.seen, self.embedded = rescale, Seen(), set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is F.embedding:
            self.embedded.add(id(args[1]))
        if function in CONVOLUTIONS or function in MATMULS and isinstance(out, torch.Tensor):
            std = _std(out)
            weight = next((a for a in args if isinstance(a, torch.nn.Parameter) and a.dim() >= 2), None)
            if self.rescale is not None and weight is not None and id(weight) not in self.embedded \
                    and weight not in self.seen.scales and math.isfinite(std) and std > 0 and not 0.7 <= std <= 1.5:
                factor = min(max(2.0 ** round(-math.log2(std)), 1 / LARGEST), LARGEST)
                self.seen.scales[weight] = factor
                scale(weight, factor, self.rescale)
                torch.clear_autocast_cache()         # it may hold the weight as it was, in low precision
                out = function(*args, **(kwargs or {}))
                std = _std(out)
            self._note(function, args, out, std)
        return out

    def _note(self, function, args, out, std):
        operands = [a for a in args if isinstance(a, torch.Tensor)]
        inputs = next((a for a in operands if not isinstance(a, torch.nn.Parameter)), operands[0])
        self.seen.std.append(std)
        self.seen.zeros.append((inputs == 0).float().mean().item())
        if function in CONVOLUTIONS:
            self.seen.dtypes.add(str(out.dtype).removeprefix("torch."))
            last = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
            self.seen.layouts.add("channels_last" if last and not inputs.is_contiguous() else "contiguous")


def _std(tensor) -> float:
    return tensor.float().std().item() if tensor.numel() > 1 else 1.0


def observe(prepared: Prepared, batches: Batches, variant: VariantStep, rescale=False) -> Seen:
    """One forward pass of the entered variant without gradients. Never in a timed region.

    With `rescale` it finds the scales that the variant needs; the weights are as before when it returns.
    """
    with contextlib.ExitStack() as stack, torch.no_grad(), Observer(stack if rescale else None) as observer, autocast(prepared):
        call_model(prepared.model, batches.inputs)
    return observer.seen


def make_sane(prepared: Prepared, batches: Batches, variant: VariantStep, is_full: bool) -> Guard:
    """Rescales the variant if its activations left [0.1, 10], and gives its guard. The full step is never touched."""
    with variant:
        seen = observe(prepared, batches, variant)
        if not is_full and any(not LOW <= s <= HIGH for s in seen.std):
            variant.scales.update(observe(prepared, batches, variant, rescale=True).scales)
    if variant.scales:
        with variant:
            seen = observe(prepared, batches, variant)
    return Guard(loss=loss_value(variant.loss), finite=bool(torch.isfinite(variant.loss).all()),
                 activation_std_low=min(seen.std, default=1.0), activation_std_high=max(seen.std, default=1.0),
                 zero_share=sum(seen.zeros) / len(seen.zeros) if seen.zeros else 0.0,
                 conv_dtypes=tuple(sorted(seen.dtypes)), conv_layouts=tuple(sorted(seen.layouts)),
                 conv_calls=len(seen.std), rescaled=len(variant.scales), filled_gradients=len(variant.fill),
                 extra={k: True for k in ("copied", "out_of_place") if getattr(variant, k)})


def all_finite(model: torch.nn.Module) -> bool:
    """Whether every parameter is finite: one diverged step must not poison the variants that share the weights."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
