"""ResNet-9 for CIFAR-10: prep, three stages, two residuals (Myrtle, "How to train your ResNet" part 4, 2018).

6.573 M parameters; 758.5 MFLOP forward and 2 272 MFLOP forward and backward per 3x32x32 image, as counted in
tests/test_models.py. The recipe sums the loss over the batch and decays by 5e-4 x batch with lr / batch, which is the
same as the mean loss, decay 5e-4 and lr used here. Its lr goes from 0 to 0.4 and back; a fixed 0.02 costs the same
time, and stays finite when the norms are taken away.
"""

from __future__ import annotations

import torch
from torch import nn

from perfscope.workload import Workload
from perfscope.workload.data import image_batch, image_pipeline

VARIANTS: tuple[str, ...] = ("",)
SHAPE, CLASSES = (3, 32, 32), 10
SCALE = 0.125               # of the logits, REFERENCES section 2


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, and a 2x2 max-pool where asked."""

    def __init__(self, c_in: int, c_out: int, pool: bool = False):
        layers = [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        super().__init__(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """x + two conv blocks of x."""

    def __init__(self, c: int):
        super().__init__()
        self.block1, self.block2 = ConvBlock(c, c), ConvBlock(c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block2(self.block1(x))


class ResNet9(nn.Module):
    """(n, 3, 32, 32) -> logits (n, classes)."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        self.prep = ConvBlock(3, 64)
        self.layer1 = nn.Sequential(ConvBlock(64, 128, pool=True), Residual(128))
        self.layer2 = ConvBlock(128, 256, pool=True)
        self.layer3 = nn.Sequential(ConvBlock(256, 512, pool=True), Residual(512))
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(512, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.linear(self.pool(x).flatten(1)) * SCALE


def optimizer(parameters) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum and weight decay, as the recipe."""
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)


def workload(variant: str = "") -> Workload:
    """One training step of ResNet-9 on CIFAR-sized images."""
    return Workload(ResNet9(), nn.CrossEntropyLoss(), optimizer, image_batch(SHAPE, CLASSES),
                    image_pipeline(SHAPE, CLASSES), name="resnet9", source="built-in", input_shape=SHAPE,
                    classes=CLASSES, data_words="uint8 images: pad 4 reflect, crop, flip, normalise, cutout 8x8")
