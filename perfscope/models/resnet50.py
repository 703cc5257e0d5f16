"""ResNet-50 for ImageNet, and its variants b, c and d (He 2015; "Bag of Tricks", He 2019, section 4).

""   stride 2 in the first 1x1 of a bottleneck                      25.557 M parameters
"b"  stride 2 moved to the 3x3 (what torchvision calls ResNet-50)   25.557 M
"c"  b, and the 7x7 stem becomes three 3x3                          25.576 M
"d"  c, and the shortcut averages 2x2 before a 1x1 of stride 1      25.576 M
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.errors import UsageError
from perfscope.workload import Workload
from perfscope.workload.data import image_batch, image_pipeline

VARIANTS: tuple[str, ...] = ("", "b", "c", "d")
SHAPE, CLASSES = (3, 224, 224), 1000
DEPTHS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
EXPANSION = 4


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU where asked."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), *([nn.ReLU(inplace=True)] if relu else []))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut."""

    def __init__(self, c_in: int, width: int, stride: int, variant: str):
        super().__init__()
        c_out = EXPANSION * width
        in_1x1 = variant == ""
        self.body = nn.Sequential(conv_bn(c_in, width, 1, stride if in_1x1 else 1),
                                  conv_bn(width, width, 3, 1 if in_1x1 else stride),
                                  conv_bn(width, c_out, 1, relu=False))
        self.shortcut = None
        if c_in != c_out or stride != 1:
            pooled = variant == "d" and stride != 1
            pool = [nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)] if pooled else []
            self.shortcut = nn.Sequential(*pool, conv_bn(c_in, c_out, 1, 1 if pooled else stride, relu=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet50(nn.Module):
    """(n, 3, h, w) -> logits (n, classes)."""

    def __init__(self, variant: str = "", classes: int = CLASSES):
        super().__init__()
        deep = variant in ("c", "d")
        stem = [conv_bn(3, 32, 3, 2), conv_bn(32, 32, 3), conv_bn(32, 64, 3)] if deep else [conv_bn(3, 64, 7, 2)]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, padding=1))
        stages, c_in = [], 64
        for i, (depth, width) in enumerate(zip(DEPTHS, WIDTHS)):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(c_in, width, 2 if i > 0 and j == 0 else 1, variant))
                c_in = EXPANSION * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.stages(self.stem(x))).flatten(1))


def optimizer(parameters) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum and weight decay 1e-4, as Bag of Tricks; a fixed low lr."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)


def workload(variant: str = "") -> Workload:
    """One training step of ResNet-50, or of one of its variants, on 224x224 images."""
    if variant not in VARIANTS:
        raise UsageError(f"resnet50 has no variant {variant!r}", f"Known: {', '.join(v for v in VARIANTS if v)}")
    return Workload(ResNet50(variant), nn.CrossEntropyLoss(), optimizer, image_batch(SHAPE, CLASSES),
                    image_pipeline(SHAPE, CLASSES), name=f"resnet50:{variant}".rstrip(":"), source="built-in",
                    input_shape=SHAPE, classes=CLASSES, data_words="uint8 256x256 images: crop 224, flip, normalise")
