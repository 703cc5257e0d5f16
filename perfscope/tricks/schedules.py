"""Learning rates and momentum over a run: torch's schedulers where it has them, factors of the peak where not."""

from __future__ import annotations

import math
from typing import Any

import torch

from perfscope.tricks import Settings

DIV_FACTOR = 25.0       # one-cycle starts at peak / 25: torch's default, after fastai


def peak_lr(s: Settings, batch: int) -> float:
    """lr at the peak: as it stands, or scaled linearly, lr x batch / lr_batch (Goyal et al. 2017)."""
    return s.lr * batch / s.lr_batch if s.lr_batch else s.lr


def factor(s: Settings, step: int, steps: int, steps_per_epoch: int) -> float:
    """lr of a step (from 0) as a share of the peak, for the schedules that have one number: constant, triangular, cosine, step.

    Warm-up: (step + 1) / m in the first m = warmup x steps (Goyal: lr_i = i L / m). After it, with t = the middle of the
    step from 0 to 1: triangular 1 - (1 - final) t; cosine final + (1 - final) (1 + cos(pi t)) / 2; step gamma^epoch.
    """
    m = round(s.warmup * steps)
    if step < m:
        return (step + 1) / m
    t = (step - m + 0.5) / max(1, steps - m)
    if s.schedule == "triangular":
        return 1 - (1 - s.final_lr) * t
    if s.schedule == "cosine":
        return s.final_lr + (1 - s.final_lr) * (1 + math.cos(math.pi * t)) / 2
    if s.schedule == "step":
        return s.gamma ** (step // steps_per_epoch)
    return 1.0


def scheduler(optimizer: torch.optim.Optimizer, s: Settings, steps: int, steps_per_epoch: int) -> Any:
    """A torch scheduler to be stepped after each optimizer step; every group's lr is its peak when this is called.

    "onecycle" is torch's OneCycleLR (cosine), "cyclic" its CyclicLR (triangular, `cycles` of them); with momentum_low both
    move the momentum (Adam: beta 1) the other way.
    """
    peaks = [g["lr"] for g in optimizer.param_groups]
    high = s.momentum if s.optimizer == "sgd" else s.betas[0]
    momentum = {"cycle_momentum": bool(s.momentum_low),
                **({"base_momentum": s.momentum_low, "max_momentum": high} if s.momentum_low else {})}
    if s.schedule == "onecycle":
        final = 1 / (DIV_FACTOR * s.final_lr) if s.final_lr else 1e4
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps + 1, pct_start=s.warmup, div_factor=DIV_FACTOR,
                                                   final_div_factor=final, **momentum)
    if s.schedule == "cyclic":
        length = steps / s.cycles
        up = max(1.0, length * (s.warmup or 0.5))
        return torch.optim.lr_scheduler.CyclicLR(optimizer, [p * s.final_lr for p in peaks], peaks, step_size_up=up,
                                                 step_size_down=max(1.0, length - up), **momentum)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(s, step, steps, steps_per_epoch))
