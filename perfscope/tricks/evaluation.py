"""Predictions: in batches, over several views of an image (test-time augmentation), for all images or the least certain."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F

from perfscope.tricks import Settings

SHIFT = 1       # pixels, Jordan 2024


def shifted(images: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """The images moved down by dy and right by dx pixels; the border is mirrored."""
    pad = max(abs(dy), abs(dx))
    height, width = images.shape[2:]
    return F.pad(images, (pad,) * 4, mode="reflect")[:, :, pad - dy:pad - dy + height, pad - dx:pad - dx + width]


def views(images: torch.Tensor, tta: str) -> list[torch.Tensor]:
    """The further views of a batch: mirrored, shifted by a pixel to two corners, or all of them, each mirrored."""
    seen = [images]
    if "shift" in tta:
        seen += [shifted(images, -SHIFT, -SHIFT), shifted(images, SHIFT, SHIFT)]
    if "flip" in tta:
        seen += [v.flip(-1) for v in seen]
    return seen[1:]


def uncertain(logits: torch.Tensor, share: float) -> torch.Tensor:
    """Indices of this share of the rows: those whose best two logits are closest (at least one)."""
    best = logits.float().topk(2, 1).values
    return (best[:, 0] - best[:, 1]).topk(max(1, round(share * len(logits))), largest=False).indices


@torch.no_grad()
def logits(net: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, s: Settings,
           prepare: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """float32 logits (n, classes) of raw images: the mean over the views of those that `tta` and `tta_share` name."""
    def run(raw: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(prepare(part)).float() for part in raw.split(s.eval_batch)])

    def more(raw: torch.Tensor) -> torch.Tensor:
        return torch.cat([sum(net(v).float() for v in views(prepare(part), s.tta)) for part in raw.split(s.eval_batch)])

    out = run(images)
    if s.tta == "off":
        return out
    n = len(views(images[:1], s.tta)) + 1
    if s.tta_share >= 1:
        return (out + more(images)) / n
    again = uncertain(out, s.tta_share)
    if len(again):
        out[again] = (out[again] + more(images[again])) / n
    return out
