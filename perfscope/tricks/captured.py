"""A step that a CUDA graph can hold: its random choices drawn ahead, optimizers as tensor functions, the graph itself.

Rates are tensors: a graph would freeze a number. torch.optim's Muon takes a number, and matrices only.
"""

from __future__ import annotations

from typing import Callable

import torch

Tensors = list[torch.Tensor]


def drawn(n: int, total: int, crop: int, flip: str) -> torch.Tensor:
    """Which images a run sees and how: int64 (4, total), rows image, y and x of the window (0 to 2 crop), mirrored (0 or 1).

    All n images come in a random order, then all in another one, and so on, `total` in all. flip "alternating" mirrors
    an image every other time it comes, beginning with a coin (Jordan 2024). On the default device, by its generator.
    """
    image = torch.cat([torch.randperm(n) for _ in range(-(-total // n))])[:total]
    if flip == "alternating":
        mirrored = (torch.rand(n) < 0.5)[image] ^ (torch.arange(total) // n % 2 == 1)
    else:
        mirrored = torch.rand(total) < (0.5 if flip == "random" else 0.0)
    return torch.stack([image, *torch.randint(2 * crop + 1, (2, total)), mirrored.long()])


def orthogonal(g: torch.Tensor, iterations: int) -> torch.Tensor:
    """(k, m, n) -> matrices near U V^T of each one's U S V^T, by Newton-Schulz with the quintic of Jordan et al. (Muon, 2024)."""
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).to(g.dtype)


def with_momentum(grads: Tensors, buffers: Tensors, momentum: float) -> Tensors:
    """Nesterov's direction; `buffers` go on in place."""
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    return list(torch._foreach_add(grads, buffers, alpha=momentum))


def sgd_step(params: Tensors, grads: Tensors, buffers: Tensors, lr: torch.Tensor, momentum: float, decay: float) -> None:
    """One step of SGD with Nesterov momentum and L2 decay, in place; lr is a 0-dimensional tensor."""
    step = with_momentum(list(torch._foreach_add(grads, params, alpha=decay)), buffers, momentum)
    torch._foreach_mul_(step, lr)
    torch._foreach_sub_(params, step)


def muon_step(params: Tensors, grads: Tensors, buffers: Tensors, lr: torch.Tensor, momentum: float, iterations: int) -> None:
    """One step of Muon, in place: each filter bank, held at norm sqrt(rows), moves by lr times an orthogonal matrix."""
    step = with_momentum(grads, buffers, momentum)
    for shape in {p.shape for p in params}:                 # equal shapes are orthogonalised together
        same = [i for i, p in enumerate(params) if p.shape == shape]
        moves = orthogonal(torch.stack([step[i].flatten(1) for i in same]), iterations)
        for i, move in zip(same, moves):
            p = params[i]
            p.mul_(shape[0] ** 0.5 / p.norm()).sub_(move.view(shape) * lr)


def graph(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`call` as a CUDA graph: a function that replays it and gives its result, each time in the same tensor.

    `call` takes and gives nothing to the host. It is run three times first, so that cuDNN has chosen its kernels.
    """
    with torch.cuda.device(device), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            result = call()

    def replay():
        recorded.replay()
        return result
    return replay
