"""A Workload: one training step that can be measured. Model, loss, optimizer, batch, input pipeline, and how it is run."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager
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

    How it is run; the command line's options win where they are given:
    dtype, memory_format, compile, cuda_graph   as in `perfscope breakdown --help`

    What your loop does besides, so that it can be measured and diagnosed:
    set_to_none     what it passes to optimizer.zero_grad
    scaler          whether it uses a GradScaler; None: only with amp-half
    clip            clip(parameters), between the backward pass and the optimizer: gradient clipping
    after_step      after_step(loss), at the end of each step: logging, EMA, ...
    ddp             arguments of DistributedDataParallel
    on_model        functions of the model, called once it is on its device in its dtype and layout; what they give, if
                    anything, takes its place
    on_optimizer    functions of the optimizer, likewise
    contexts        functions that give a context manager; every step runs within all of them
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
    dtype: str = "float32"
    memory_format: str = "contiguous"
    compile: str = "off"
    cuda_graph: bool = False
    set_to_none: bool = True
    scaler: bool | None = None
    clip: Callable[[list], Any] | None = None
    after_step: Callable[[torch.Tensor], Any] | None = None
    ddp: dict = field(default_factory=dict)
    on_model: tuple[Callable[[torch.nn.Module], Any], ...] = ()
    on_optimizer: tuple[Callable[[torch.optim.Optimizer], Any], ...] = ()
    contexts: tuple[Callable[[], AbstractContextManager], ...] = ()
    extra: dict = field(default_factory=dict)

    @contextmanager
    def within(self):
        """All of the workload's own contexts, entered in order; left again also if one of them fails."""
        with ExitStack() as stack:
            for own in self.contexts:
                stack.enter_context(own())
            yield
