"""Optimizers: groups without decay, Muon for matrices, float32 master copies of 16-bit weights."""

from __future__ import annotations

from typing import Callable, Iterable

import torch
from torch import nn

from perfscope.errors import EnvironmentError_, UsageError
from perfscope.tricks import Settings

Named = list[tuple[str, torch.Tensor]]


def groups(named: Named, s: Settings) -> list[dict]:
    """Parameter groups: with `no_decay`, biases and norm parameters (those of one dimension) are not decayed."""
    decayed = [p for _, p in named if p.ndim > 1 or not s.no_decay]
    plain = [p for _, p in named if p.ndim <= 1 and s.no_decay]
    return [g for g in ({"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}) if g["params"]]


def make(named: Named, s: Settings, lr: float) -> list[torch.optim.Optimizer]:
    """The optimizers of these parameters, peak lr set: one, or with "muon" two (Muon for inner matrices, Adam for the rest)."""
    if s.optimizer == "muon":
        return muon(named, s, lr)
    g, fused = groups(named, s), {"fused": True} if s.fused else {}
    if s.optimizer == "sgd":
        return [torch.optim.SGD(g, lr, momentum=s.momentum, nesterov=s.nesterov and s.momentum > 0, **fused)]
    if s.optimizer == "adadelta":
        return [torch.optim.Adadelta(g, lr)]
    kind = torch.optim.AdamW if s.optimizer == "adamw" else torch.optim.Adam
    return [kind(g, lr, betas=s.betas, eps=s.eps, **fused)]


def theirs(make: Callable, named: Named, s: Settings) -> torch.optim.Optimizer:
    """Somebody's own optimizer for these parameters, made fused if the settings say so. UsageError if it cannot be."""
    found = make([p for _, p in named])
    if not s.fused or found.defaults.get("fused"):
        return found
    try:
        return type(found)(found.param_groups, **{**found.defaults, "fused": True, "foreach": None})
    except (TypeError, RuntimeError) as e:
        raise UsageError(f"{type(found).__name__} cannot be fused: {e}") from None


def matrix(t: torch.Tensor) -> torch.Tensor:
    """A convolution's weight or gradient (o, i, h, w) as a matrix (o, h w i): a view of one that is channels_last."""
    return t.permute(0, 2, 3, 1).flatten(1) if t.ndim == 4 else t


class FlatMuon(torch.optim.Optimizer):
    """torch.optim.Muon for convolutions too: their weights seen as matrices (Jordan et al. 2024). torch's takes 2-D alone.

    `param_groups` is Muon's own, so that a scheduler moves its rate. Not to be made anew by copying.
    """

    def __init__(self, params: Iterable[torch.Tensor], **named):
        if not hasattr(torch.optim, "Muon"):
            raise EnvironmentError_(f"torch {torch.__version__} has no Muon", "Update torch to 2.9 or later, or use --without muon.")
        self.real = list(params)
        self.flat = [nn.Parameter(matrix(p.detach()).contiguous()) for p in self.real]
        self.inner = torch.optim.Muon(self.flat, **named)
        super().__init__(self.flat, {"lr": named["lr"]})
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        """One step of Muon on the matrices, copied back to the weights."""
        for p, f in zip(self.real, self.flat):
            f.grad = None if p.grad is None else matrix(p.grad).contiguous()
        self.inner.step()
        for p, f in zip(self.real, self.flat):
            matrix(p).copy_(f) if matrix(p).data_ptr() == p.data_ptr() else p.copy_(_unflat(f, p))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the weights' gradients."""
        for p in self.real:
            p.grad = None


def _unflat(f: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    if p.ndim != 4:
        return f
    o, i, h, w = p.shape
    return f.view(o, h, w, i).permute(0, 3, 1, 2)


def muon(named: Named, s: Settings, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for every matrix and convolution but the first and the last one; Adam for those, biases and norms."""
    matrices = [i for i, (_, p) in enumerate(named) if p.ndim in (2, 4)]
    inner = set(matrices[1:-1])
    mine = [p for i, (_, p) in enumerate(named) if i in inner]
    rest = [n for i, n in enumerate(named) if i not in inner]
    out: list[torch.optim.Optimizer] = [torch.optim.Adam(groups(rest, s), lr, betas=s.betas, eps=s.eps)]
    if mine:
        out.append(FlatMuon(mine, lr=s.muon_lr, momentum=s.momentum, nesterov=s.nesterov, weight_decay=s.weight_decay))
    return out


class Masters:
    """Float32 copies of 16-bit weights. The optimizer moves the copies; small updates are not rounded away (Micikevicius 2017)."""

    def __init__(self, named: Named):
        self.real = [p for _, p in named]
        self.copies = [p.detach().float().clone().requires_grad_() for p in self.real]
        self.named: Named = [(name, c) for (name, _), c in zip(named, self.copies)]

    @torch.no_grad()
    def take_gradients(self, scale: float = 1.0) -> None:
        """The weights' gradients, divided by the loss scale, in float32."""
        for p, c in zip(self.real, self.copies):
            c.grad = None if p.grad is None else p.grad.float().div_(scale)

    @torch.no_grad()
    def give_weights(self) -> None:
        """The moved copies back to the weights, rounded."""
        torch._foreach_copy_(self.real, self.copies)


@torch.no_grad()
def unscale(named: Named, scale: float) -> None:
    """Divides the gradients in place by the loss scale."""
    found = [p.grad for _, p in named if p.grad is not None]
    if found and scale != 1.0:
        torch._foreach_div_(found, scale)
