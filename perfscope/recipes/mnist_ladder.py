"""MNIST to 99 %, step by step from minutes to seconds: the nine rungs of train_mnist_fast (REFERENCES section 4), parametrised.

Each rung is the one before it with one thing changed, written as such below. Published on a GTX 1660 Ti laptop: 172 s to
0.76 s. What is different here: rungs 1 to 4 stopped once the *test* set was at 99 %, which fits the length of each run to
the answer; here their length is fixed in advance, at the epochs that they are said to have taken ("3-5": 4, and 3 once the
batch has doubled). Images that do not fill an epoch's last batch are left out, and images are prepared in this process.
Rung 1's published net is rung 0's; the max-pool that rung 2 adds after the first convolution makes 1600 features of 9216.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from perfscope import tricks
from perfscope.errors import UsageError
from perfscope.tricks.loop import fit

DATASET, TARGET = "mnist", 0.99


@dataclass(frozen=True)
class Settings(tricks.Settings):
    """Rung 0: the example of PyTorch."""

    epochs: float = 14.0
    batch: int = 64
    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)
    preloaded: bool = False
    optimizer: str = "adadelta"
    lr: float = 1.0
    schedule: str = "step"
    gamma: float = 0.7
    dropout: float = 0.25               # before the fully connected layers; twice that between them
    dropouts: int = 2
    width1: int = 32                    # channels of the first convolution
    width2: int = 64
    kernel1: int = 3
    early_pool: bool = False            # a max-pool after the first convolution too
    pool_first: bool = False            # before ReLU, not after it
    hidden: int = 128


R0 = Settings()
R1 = replace(R0, epochs=4.0)                                                        # the length that stopping at 99 % gave
R2 = replace(R1, early_pool=True, dropouts=1)                                       # smaller sooner
R3 = replace(R2, preloaded=True)                                                    # the whole set is one tensor
R4 = replace(R3, batch=128, epochs=3.0)
R5 = replace(R4, epochs=2.0, lr=4.0, schedule="onecycle", warmup=0.3)               # superconvergence
R6 = replace(R5, batch=256)
R7 = replace(R6, width1=24, width2=32, dropout=0.0, dropouts=0)
R8 = replace(R7, epochs=1.0, pool_first=True, kernel1=5, hidden=256, optimizer="adam", lr=0.01, betas=(0.7, 0.9))

VARIANTS = {"": R8, **{str(i): r for i, r in enumerate((R0, R1, R2, R3, R4, R5, R6, R7, R8))},
            "fast": replace(R8, memory_format="channels_last", dtype="amp-bfloat16", fused=True)}
LADDER = (*(f"mnist_ladder:{i}" for i in range(9)), "mnist_ladder:fast", "mnist")

_TIMES = (172.0, 57.4, 30.3, 7.31, 4.66, 3.14, 2.31, 1.74, 0.762)
_ACCURACY = {0: 0.99185, 1: 0.9907, 8: 0.99041}
PUBLISHED = {str(i): {"time_s": t, "accuracy": _ACCURACY.get(i), "hardware": "GTX 1660 Ti laptop", "source": "train_mnist_fast"}
             for i, t in enumerate(_TIMES)}
REFUSES = {"flip": "a mirrored digit is another sign", "ghost_norm": "the net has no norm", "frozen_scale": "the net has no norm",
           "zero_gamma": "the net has no residual block", "whitening": "one channel of strokes: nothing to whiten"}


class Net(nn.Module):
    """(n, 1, 28, 28) -> logits (n, 10). Rung 8 is perfscope.models.mnist_cnn."""

    def __init__(self, s: Settings):
        super().__init__()
        self.s = s
        side = 28 - s.kernel1 + 1
        side = ((side // 2 if s.early_pool else side) - 2) // 2
        self.conv1 = nn.Conv2d(1, s.width1, s.kernel1)
        self.conv2 = nn.Conv2d(s.width1, s.width2, 3)
        self.fc1 = nn.Linear(s.width2 * side * side, s.hidden)
        self.fc2 = nn.Linear(s.hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.s
        x = self.shrink(self.conv1(x)) if s.early_pool else F.relu(self.conv1(x))
        x = self.shrink(self.conv2(x))
        if s.dropouts > 1:
            x = F.dropout(x, s.dropout, self.training)
        x = F.relu(self.fc1(x.flatten(1)))
        if s.dropouts:
            x = F.dropout(x, 2 * s.dropout, self.training)
        return self.fc2(x)

    def shrink(self, x: torch.Tensor) -> torch.Tensor:
        """Max-pool and ReLU, in the rung's order: the same values either way."""
        return F.relu(F.max_pool2d(x, 2)) if self.s.pool_first else F.max_pool2d(F.relu(x), 2)


def check(s: Settings) -> None:
    """UsageError if the dropout would zero everything."""
    if not 0 <= s.dropout < 0.5:
        raise UsageError(f"dropout is from 0 to below 0.5 here (it is doubled between the layers), not {s.dropout:g}")


def model(s: Settings) -> nn.Module:
    """The net of a rung."""
    return Net(s)


def train(data, s: Settings, seed: int, log, ranks) -> torch.Tensor:
    """Logits of the evaluation images."""
    return fit(model, data, s, seed, log, ranks)
