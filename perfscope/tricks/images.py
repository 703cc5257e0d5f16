"""What happens to a batch of images on its device: normalise, flip, crop, cutout. uint8 or float, (n, c, h, w).

`g` is a generator of the images' device.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from perfscope.tricks import Settings
from perfscope.workload.data import cutout, pad_reflect, random_crop, random_flip

COMPUTE = {"float32": torch.float32, "half": torch.float16, "amp-half": torch.float16,
           "bfloat16": torch.bfloat16, "amp-bfloat16": torch.bfloat16}
LAYOUT = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@lru_cache(maxsize=8)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 / (255 std), mean / std) on the device: made once, because making them waits for a GPU."""
    m, s = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    return 1 / (255 * s), m / s


def prepare(images: torch.Tensor, s: Settings) -> torch.Tensor:
    """uint8 -> (x / 255 - mean) / std, computed in float32, given in the run's dtype and layout."""
    scale, shift = _affine(s.mean, s.std, images.device)
    x = images.to(torch.float32).mul_(scale).sub_(shift)
    return x.to(COMPUTE[s.dtype], memory_format=LAYOUT[s.memory_format])


def alternating_flip(images: torch.Tensor, mirrored: torch.Tensor, epoch: int) -> torch.Tensor:
    """Mirrors in epoch 0 the images that `mirrored` (bool, n) names, in epoch 1 the others, and so on (Jordan 2024): two
    epochs in a row never show the same view of an image."""
    return torch.where((mirrored ^ bool(epoch % 2)).view(-1, 1, 1, 1), images.flip(-1), images)


def augment(images: torch.Tensor, s: Settings, g: torch.Generator, mirrored: torch.Tensor, epoch: int) -> torch.Tensor:
    """Prepared images with the crop, flip and cutout of the settings. `mirrored`: this batch's part of the run's coin flips."""
    height, width = images.shape[2:]
    if s.crop:
        images = random_crop(pad_reflect(images, s.crop), height, width, g)
    if s.flip == "random":
        images = random_flip(images, g)
    elif s.flip == "alternating":
        images = alternating_flip(images, mirrored, epoch)
    if s.cutout:
        images = cutout(images.clone() if not s.crop else images, s.cutout, g)
    return images.contiguous(memory_format=LAYOUT[s.memory_format])
