"""Pre-activation ResNet-18, 64-128-256-256, for CIFAR-10 (Myrtle, "How to train your ResNet" parts 1-3, 2018).

The network of the breakdown that this project starts from: 2 756 MFLOP forward and backward per 3x32x32 image.
How the configuration was found: the text gives the widths, two blocks per stage and the concatenated max- and
average-pool; strides 1, 2, 2, 2 follow from the 4x4 map that is pooled. Left open is the shortcut. Counted with each:
a 1x1 convolution wherever the shape changes (three of them) gives 2 756.4 MFLOP, no convolution in any 2 725,
one also in the first block 2 782 (all in tests/test_models.py), so it is the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.workload import Workload
from perfscope.workload.data import image_batch, image_pipeline

VARIANTS: tuple[str, ...] = ("",)
SHAPE, CLASSES = (3, 32, 32), 10
STAGES = ((64, 1), (128, 2), (256, 2), (256, 2))        # width, stride of the first block
SCALE = 0.125               # of the logits, as in ResNet-9


class PreActBlock(nn.Module):
    """norm, ReLU, conv, norm, ReLU, conv; the shortcut leaves after the first ReLU if it needs a convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        changes = stride != 1 or c_in != c_out
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class ResNet18(nn.Module):
    """(n, 3, 32, 32) -> logits (n, classes)."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        self.prep = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        blocks, c_in = [], 64
        for width, stride in STAGES:
            blocks += [PreActBlock(c_in, width, stride), PreActBlock(width, width, 1)]
            c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(c_in)
        self.linear = nn.Linear(2 * c_in, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.blocks(self.prep(x))))
        x = torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], dim=1)
        return self.linear(x.flatten(1)) * SCALE


def optimizer(parameters) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum and weight decay, as the recipe."""
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)


def workload(variant: str = "") -> Workload:
    """One training step of the article's ResNet-18 on CIFAR-sized images."""
    return Workload(ResNet18(), nn.CrossEntropyLoss(), optimizer, image_batch(SHAPE, CLASSES),
                    image_pipeline(SHAPE, CLASSES), name="resnet18_cifar", source="built-in", input_shape=SHAPE,
                    classes=CLASSES, data_words="uint8 images: pad 4 reflect, crop, flip, normalise, cutout 8x8")
