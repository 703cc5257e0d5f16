"""A Workload: one training step that can be measured. Model, loss, optimizer, batch, input pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable

import torch


@dataclass(frozen=True)
class Workload:
    """What one training step needs.

    model      the module that is trained
    loss       loss(output, target) -> scalar tensor
    optimizer  a torch optimizer, or a callable that makes one from the model's parameters
    batch      batch(n) -> (inputs, target) of n samples on the CPU, random data, float32 or integer.
               `inputs` is a tensor, a tuple (model(*inputs)) or a dict (model(**inputs)).
               A fixed (inputs, target) pair is accepted: its rows are repeated or cut to n.
    data       data(n) -> endless iterator of (inputs, target) of n samples from the real input pipeline, on the
               CPU: what costs the "data" part. None if there is none.
    name, source, input_shape (of one sample), classes, data_words: for the record, no effect.
    """

    model: torch.nn.Module
    loss: Callable[[Any, Any], torch.Tensor]
    optimizer: Any
    batch: Any
    data: Callable[[int], Any] | None = None
    name: str = ""
    source: str = ""
    input_shape: tuple[int, ...] = ()
    classes: int = 0
    data_words: str = ""
    extra: dict = field(default_factory=dict)
