"""Targets: label smoothing, mixup, distillation. Labels are int64 (n,), logits (n, classes); every loss is a mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def mix(images: torch.Tensor, labels: torch.Tensor, alpha: float, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """mixup: (mixed images, the partners' labels, lambda), lambda ~ Beta(alpha, alpha), one for the batch (Zhang et al. 2017).

    lambda x + (1 - lambda) x[partner] for float images (n, ...); the loss is mixed the same way. `g` is on the CPU.
    """
    a = torch.full((2,), float(alpha))
    gamma = torch._standard_gamma(a, generator=g)
    lam = float(gamma[0] / gamma.sum()) if float(gamma.sum()) else 0.5
    partner = torch.randperm(len(images), generator=g).to(images.device)
    return blend(images, partner, lam), labels[partner], lam


def blend(images: torch.Tensor, partner: torch.Tensor, lam: float) -> torch.Tensor:
    """lam x + (1 - lam) x[partner]."""
    return lam * images + (1 - lam) * images[partner]


def distillation(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student), both softened by T, mean over the batch (Hinton et al. 2015)."""
    student = F.log_softmax(logits.float() / temperature, 1)
    target = F.log_softmax(teacher.float() / temperature, 1)
    return temperature ** 2 * F.kl_div(student, target, reduction="batchmean", log_target=True)


def loss(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0, other: torch.Tensor | None = None, lam: float = 1.0,
         teacher: torch.Tensor | None = None, weight: float = 0.5, temperature: float = 4.0) -> torch.Tensor:
    """Cross entropy with label smoothing; of two labels with weights lam and 1 - lam (mixup); mixed with a teacher's
    part: (1 - weight) hard + weight T^2 KL."""
    hard = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if other is not None:
        hard = lam * hard + (1 - lam) * F.cross_entropy(logits, other, label_smoothing=smoothing)
    return hard if teacher is None else (1 - weight) * hard + weight * distillation(logits, teacher, temperature)
