"""CIFAR-10 to 94 % with ResNet-9 in 24 epochs: 79 s on a V100 in 2018, 35 of 50 runs at 94 %, median 94.08 %.

Myrtle, "How to train your ResNet" part 4 (REFERENCES section 2): lr 0 -> 0.4 at epoch 5 -> 0 at epoch 24, batch 512,
pad 4, crop, flip, cutout 8x8. 758.5 MFLOP forward, 2 272 MFLOP forward and backward per image, 6.573 M parameters.

What is different here: the mean of the loss with decay 5e-4 (there: the sum, with decay 5e-4 x batch and lr / batch, which
is the same step), float32 copies of the half weights, and a loss scaled by the batch so that small gradients survive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from perfscope import registry, tricks
from perfscope.tricks import nets
from perfscope.tricks.loop import fit

DATASET, TARGET = "cifar10", 0.94


@dataclass(frozen=True)
class Settings(tricks.Settings):
    """24 epochs, half with float32 norms."""

    epochs: float = 24.0
    batch: int = 512
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)      # of the training images
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    lr: float = 0.4
    lr_batch: int = 512
    weight_decay: float = 5e-4
    schedule: str = "triangular"
    warmup: float = 5 / 24
    dtype: str = "half"
    norm_float: bool = True
    master: bool = True
    loss_scale: float = 512.0
    flip: str = "random"
    crop: int = 4
    cutout: int = 8


FULL = Settings()
VARIANTS = {
    "": FULL,
    "channels_last": replace(FULL, memory_format="channels_last"),
    "bfloat16": replace(FULL, memory_format="channels_last", dtype="amp-bfloat16", norm_float=False, master=False, loss_scale=0.0),
    "cpu": replace(FULL, dtype="float32", norm_float=False, master=False, loss_scale=0.0, memory_format="channels_last"),
}
REFUSES = {
    "dropout": "the network has none",
    "whitening": "the first convolution is 3x3 and learnt: recipe cifar10 has whitening",
}
PUBLISHED = {"": {"time_s": 79.0, "accuracy": 0.9408, "hardware": "V100", "source": "Myrtle, How to train your ResNet, part 4, 2018"}}


def model(s: Settings) -> nn.Module:
    """ResNet-9: (n, 3, 32, 32) -> logits (n, 10)."""
    net = registry.load("models", "resnet9").ResNet9()
    if s.zero_gamma:
        nets.zero_gamma(net.get_submodule(f"{layer}.1.block2.1") for layer in ("layer1", "layer3"))
    return net


def train(data, s: Settings, seed: int, log, ranks) -> torch.Tensor:
    """Logits of data.test_images."""
    return fit(model, data, s, seed, log, ranks)
