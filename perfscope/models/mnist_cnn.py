"""Small CNN for MNIST, last rung of the ladder from minutes to under a second (train_mnist_fast, REFERENCES section 4).

215 194 parameters, 6.77 MFLOP forward and backward per 1x28x28 image. Derived: a fully connected layer of 256 leads
to 215 k parameters if 800 = 32 x 5 x 5 features reach it, which is what two convolutions (5x5, 3x3), each followed by
a 2x2 pool, leave of 28x28. Without padding that gives 6.77 MFLOP; padding 1 in the first keeps the parameters, but
takes 7.88, and any other changes the parameters (tests/test_models.py counts them all).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from perfscope.workload import Workload
from perfscope.workload.data import image_batch, image_pipeline

VARIANTS: tuple[str, ...] = ("",)
SHAPE, CLASSES = (1, 28, 28), 10


class MnistCNN(nn.Module):
    """(n, 1, 28, 28) -> logits (n, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 5)
        self.conv2 = nn.Conv2d(24, 32, 3)
        self.fc1 = nn.Linear(800, 256)
        self.fc2 = nn.Linear(256, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))      # pool before ReLU: a quarter of the ReLU's work, same result
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def optimizer(parameters) -> torch.optim.Optimizer:
    """Adam at the recipe's peak lr."""
    return torch.optim.Adam(parameters, lr=0.01, betas=(0.7, 0.9))


def workload(variant: str = "") -> Workload:
    """One training step of the MNIST network."""
    return Workload(MnistCNN(), nn.CrossEntropyLoss(), optimizer, image_batch(SHAPE, CLASSES),
                    image_pipeline(SHAPE, CLASSES), name="mnist_cnn", source="built-in", input_shape=SHAPE,
                    classes=CLASSES, data_words="uint8 images: normalise")
