"""What is done to a network before it is trained: zero gamma, frozen norm scale, ghost norm, whitening, 16-bit weights."""

from __future__ import annotations

from typing import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from perfscope.tricks import CAST, Settings
from perfscope.tricks.images import COMPUTE, LAYOUT


def zero_gamma(norms: Iterable[nn.Module]) -> None:
    """Weight 0 for these norms, the last of each residual block: each block starts as the identity (Goyal et al. 2017)."""
    for norm in norms:
        nn.init.zeros_(norm.weight)


def freeze_scale(net: nn.Module) -> None:
    """Batch norm weights become 1 and are not learnt; biases are (Myrtle, part 7)."""
    for norm in (m for m in net.modules() if isinstance(m, _BatchNorm)):
        nn.init.ones_(norm.weight)
        norm.weight.requires_grad_(False)


class GhostNorm2d(nn.BatchNorm2d):
    """Batch norm over groups of `ghost` images, in their order; evaluation is that of batch norm (Hoffer et al. 2017)."""

    def __init__(self, channels: int, ghost: int, **named):
        super().__init__(channels, **named)
        self.ghost = ghost

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or len(x) <= self.ghost:
            return super().forward(x)
        return torch.cat([super(GhostNorm2d, self).forward(group) for group in x.split(self.ghost)])


def ghost_norm(net: nn.Module, ghost: int) -> None:
    """Every BatchNorm2d becomes a GhostNorm2d, its weights and statistics kept."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                new = GhostNorm2d(child.num_features, ghost, eps=child.eps, momentum=child.momentum, affine=child.affine)
                new.load_state_dict(child.state_dict())
                if child.affine:
                    new.weight.requires_grad_(child.weight.requires_grad)
                setattr(module, name, new)


def whitening(images: torch.Tensor, kernel: int, eps: float = 1e-2, most: int = 5000) -> torch.Tensor:
    """Convolution weights (c k k, c, k, k) that whiten the k x k patches of float images: v_i / sqrt(lambda_i + eps), v_i and
    lambda_i of the patches' covariance, the largest first (Myrtle, part 8). From the first `most` images."""
    c = images.shape[1]
    patches = images[:most].float().unfold(2, kernel, 1).unfold(3, kernel, 1).movedim(1, 3).reshape(-1, c * kernel * kernel)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    rows = vectors.T / (values + eps).sqrt()[:, None]
    return rows.flip(0).reshape(-1, c, kernel, kernel)


def placed(net: nn.Module, s: Settings, device: torch.device) -> nn.Module:
    """The network on its device in the layout and dtype of the settings: with "half" or "bfloat16" its weights too, but
    those of the norms if `norm_float`; the general tricks of the network (frozen scale, ghost norm) switched on."""
    if s.frozen_scale:
        freeze_scale(net)
    if s.ghost:
        ghost_norm(net, s.ghost)
    net = net.to(device=device, memory_format=LAYOUT[s.memory_format])
    if s.dtype in CAST:
        net = net.to(COMPUTE[s.dtype])
        if s.norm_float:
            for norm in (m for m in net.modules() if isinstance(m, _BatchNorm)):
                norm.float()
    return net


def pool_then_relu(x: torch.Tensor, size: int = 2) -> torch.Tensor:
    """ReLU of the max-pool: the same as the pool of the ReLU, with a quarter of its work."""
    return F.relu(F.max_pool2d(x, size))
