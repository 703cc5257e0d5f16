"""CIFAR-10 to 94 % with the pre-activation ResNet-18 of the article this project comes from: 154 s on a V100 in 2018.

Myrtle, "How to train your ResNet" part 3 (REFERENCES section 1): half precision, SGD with Nesterov momentum, random crop
and flip, cutout 8x8. The article's disease is the variant "article": norm weights in half miss cuDNN; its cure, float32
norm weights, is "fixed". 2 756 MFLOP forward and backward per image.

What is different here: the optimizer moves float32 copies of the weights and the loss is scaled by the batch (there: half
weights, a loss summed over the batch). lr rises to epoch 5 and falls linearly, the "earlier peak" of the article; which
epoch it peaked in is not published. The rate 0.44 for batch 512 is that of reimplementations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from perfscope import registry, tricks
from perfscope.tricks.loop import fit

DATASET, TARGET = "cifar10", 0.94


@dataclass(frozen=True)
class Settings(tricks.Settings):
    """35 epochs, cutout, batch 512, half with float32 norms."""

    epochs: float = 35.0
    batch: int = 512
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)      # of the training images
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    lr: float = 0.44
    lr_batch: int = 512
    weight_decay: float = 5e-4
    schedule: str = "triangular"
    warmup: float = 5 / 35
    dtype: str = "half"
    norm_float: bool = True
    master: bool = True
    loss_scale: float = 512.0
    flip: str = "random"
    crop: int = 4
    cutout: int = 8


FULL = Settings()
SHORT = Settings(epochs=30.0, warmup=5 / 30)
VARIANTS = {
    "": FULL,
    "channels_last": replace(FULL, memory_format="channels_last"),
    "article": replace(FULL, cutout=0, norm_float=False),
    "fixed": replace(FULL, cutout=0),
    "30": replace(SHORT, cutout=0),
    "30_cutout": SHORT,
    "30_cutout_768": replace(SHORT, batch=768),
    "cpu": replace(FULL, dtype="float32", norm_float=False, master=False, loss_scale=0.0, memory_format="channels_last"),
}
REFUSES = {
    "zero_gamma": "in a pre-activation block no norm is last, so none of them can silence it",
    "dropout": "the network has none",
    "whitening": "the first convolution is 3x3 and learnt: recipe cifar10 has whitening",
}
V100 = {"hardware": "V100", "source": "Myrtle, How to train your ResNet, part 3, 2018"}
PUBLISHED = {
    "": {"accuracy": 0.943, **V100},
    "article": {"time_s": 256.0, **V100},
    "fixed": {"time_s": 186.0, **V100},
    "30_cutout": {"time_s": 161.0, "accuracy": 0.9413, **V100},
    "30_cutout_768": {"time_s": 154.0, "accuracy": 0.9406, **V100},
}


def model(s: Settings) -> nn.Module:
    """Pre-activation ResNet-18, 64-128-256-256: (n, 3, 32, 32) -> logits (n, 10)."""
    return registry.load("models", "resnet18_cifar").ResNet18()


def train(data, s: Settings, seed: int, log, ranks) -> torch.Tensor:
    """Logits of data.test_images."""
    return fit(model, data, s, seed, log, ranks)
