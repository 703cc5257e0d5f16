"""ResNet-50 on ImageNet or any image folder with the Bag of Tricks: 76.2 % plain, 78.3 % with all that needs no teacher.

He et al., "Bag of Tricks for Image Classification", 2018 (REFERENCES section 5; accuracies from memory of the paper, not
measured here: this has only been run on small generated folders). Blocks B, C and D, lr 0.1 per 256 images, 5 epochs of
warm-up, cosine decay, zero gamma, no decay of biases and norms, label smoothing, mixed precision; with mixup (200 epochs)
and distillation as variants. Images: `--data FOLDER`, see perfscope.workload.image_folder.

What is different here: images are stored as 256x256 squares and the random area and aspect is cut out of those, on the
device; no colour jitter; the teacher is a trained network of this recipe (there: ResNet-152). Sets too large for the
memory are decoded batch by batch inside the clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from perfscope import registry, tricks
from perfscope.errors import UsageError
from perfscope.tricks import images, loop, nets, schedules

DATASET, TARGET = "images", 0.783


@dataclass(frozen=True)
class Settings(tricks.Settings):
    """120 epochs, ResNet-50-D."""

    epochs: float = 120.0
    batch: int = 256
    batch_per_rank: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)         # of ImageNet
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    classes: int = 1000                 # of the network; a folder with more is refused
    lr: float = 0.1
    lr_batch: int = 256
    weight_decay: float = 1e-4
    no_decay: bool = True
    schedule: str = "cosine"
    warmup: float = 5 / 120
    dtype: str = "amp-half"
    memory_format: str = "channels_last"
    label_smoothing: float = 0.1
    flip: str = "random"
    temperature: float = 20.0           # of distillation
    zero_gamma: bool = True
    stride_in_3x3: bool = True          # B
    deep_stem: bool = True              # C
    pooled_shortcut: bool = True        # D
    size: int = 224                     # side of what the network sees
    random_area: bool = True            # a random part of the area, stretched a little; False: a random crop
    eval_batch: int = 250


FULL = Settings()
PLAIN = replace(FULL, epochs=90.0, warmup=0.0, no_decay=False, schedule="step", gamma=0.1 ** (1 / 30), dtype="float32", memory_format="contiguous",
                label_smoothing=0.0, zero_gamma=False, stride_in_3x3=False, deep_stem=False, pooled_shortcut=False)
VARIANTS = {
    "": FULL,
    "mixup": replace(FULL, mixup=0.2, epochs=200.0, warmup=5 / 200),
    "plain": PLAIN,                     # the tricks off; lr falls to a tenth in 30 epochs, a little each epoch
    "b": replace(PLAIN, stride_in_3x3=True),
    "c": replace(PLAIN, stride_in_3x3=True, deep_stem=True),
    "d": replace(PLAIN, stride_in_3x3=True, deep_stem=True, pooled_shortcut=True),
}
BAG = "He et al., Bag of Tricks, 2018, section 4"
OWN = {"resnet_b": f"stride 2 in the 3x3 of a bottleneck, not its first 1x1: no activation is skipped; {BAG}",
       "resnet_c": f"three 3x3 convolutions in place of the 7x7 stem; {BAG}",
       "resnet_d": f"the shortcut averages 2x2 before a 1x1 of stride 1: no activation is skipped; {BAG}",
       "random_area": "8 to 100 % of the area, aspect 3/4 to 4/3, scaled to the input (Szegedy et al. 2014)"}
WITH = {"resnet_b": {"stride_in_3x3": True}, "resnet_c": {"stride_in_3x3": True, "deep_stem": True}, "random_area": {"random_area": True},
        "resnet_d": {"stride_in_3x3": True, "deep_stem": True, "pooled_shortcut": True}}
WITHOUT = {"resnet_b": {"stride_in_3x3": False, "deep_stem": False, "pooled_shortcut": False}, "resnet_d": {"pooled_shortcut": False},
           "resnet_c": {"deep_stem": False, "pooled_shortcut": False}, "random_area": {"random_area": False}}
REFUSES = {"dropout": "the network has none", "whitening": "the stem is learnt: recipe cifar10 has whitening",
           "early_stop": "this recipe's own loop does not look at the evaluation images before the end",
           "crop": "random_area and the crop to `size` are this recipe's", "preloaded": "decoded images are kept where they fit"}


def check(s: Settings) -> None:
    """UsageError for blocks that the model does not have, and for what this recipe's loop does not do."""
    if (s.pooled_shortcut and not s.deep_stem) or (s.deep_stem and not s.stride_in_3x3):
        raise UsageError("D is built on C, and C on B", "Use --without resnet_b, which leaves out all three, or --without resnet_c.")
    if s.flip == "alternating" or s.crop or s.early_stop or s.dropout or s.whiten or not s.preloaded:
        raise UsageError("resnet50_imagenet augments by itself: no alternating flip, crop, early stop, dropout, whitening or DataLoader")


def model(s: Settings) -> nn.Module:
    """ResNet-50, or its variant B, C or D: (n, 3, size, size) -> logits (n, classes)."""
    variant = "d" if s.pooled_shortcut else "c" if s.deep_stem else "b" if s.stride_in_3x3 else ""
    net = registry.load("models", "resnet50").ResNet50(variant, s.classes)
    if s.zero_gamma:
        nets.zero_gamma(block.body[-1][1] for stage in net.stages for block in stage)
    return net


def train(data, s: Settings, seed: int, log, ranks) -> torch.Tensor:
    """Logits of data.test_images."""
    device, n = data.train_images.device, len(data.train_labels)
    if int(data.train_labels.max()) >= s.classes:
        raise UsageError(f"the folder has {int(data.train_labels.max()) + 1} classes, the network {s.classes}", "Set classes=N.")
    torch.manual_seed(seed)
    batch = min(s.batch * (ranks.size if s.batch_per_rank else 1), n) // ranks.size * ranks.size
    net = nets.placed(model(s), s, device)
    loop.load(net, s.checkpoint)
    trainer = loop.Trainer(net, s, device, schedules.peak_lr(s, batch), loop.teacher(model, s, device), ranks)
    per_epoch = n // batch
    steps = max(1, round(s.epochs * per_epoch))
    trainer.schedule(steps, per_epoch)
    order = torch.Generator().manual_seed(seed)                             # the same on every rank
    chance = torch.Generator(device).manual_seed(seed * 1000 + 1 + ranks.rank)
    for step in range(steps):
        i = step % per_epoch
        shuffled = torch.randperm(n, generator=order) if i == 0 else shuffled
        index = shuffled[i * batch:(i + 1) * batch][ranks.rank::ranks.size].to(data.train_labels.device)
        x = augmented(data.train_images[index], s, chance)
        log((step + 1) / per_epoch, trainer.step(x, data.train_labels[index]))
    log.trained(trainer.evaluated())
    rows = torch.arange(len(data.test_images), device=data.train_labels.device)
    return torch.cat([trainer.evaluate(centre(data.test_images[index], s.size)) for index in rows.split(s.eval_batch * ranks.size)])


def augmented(raw: torch.Tensor, s: Settings, g: torch.Generator) -> torch.Tensor:
    """uint8 (n, 3, h, w) -> normalised (n, 3, size, size): a random window of each image, mirrored with probability 1/2.

    The window has 8 to 100 % of the area and an aspect of 3/4 to 4/3 (both sides at most the image's), or, without
    random_area, the side `size`. Sampled bilinearly, without a filter: a window larger than `size` is not smoothed.
    """
    n, _, height, width = raw.shape

    def random(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=g, device=raw.device)

    if s.random_area:
        side, aspect = random(0.08, 1.0).sqrt(), random(math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
        across, down = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    else:
        across, down = (torch.full((n,), min(1.0, s.size / side), device=raw.device) for side in (width, height))
    theta = torch.zeros(n, 2, 3, device=raw.device)                         # from the window's coordinates to the image's, both -1 to 1
    theta[:, 0, 2], theta[:, 1, 2] = random(-1, 1) * (1 - across), random(-1, 1) * (1 - down)
    sign = torch.where(random(0, 1) < 0.5, -1.0, 1.0) if s.flip == "random" else 1.0
    theta[:, 0, 0], theta[:, 1, 1] = across * sign, down
    x = images.prepare(raw, replace(s, dtype="float32", norm_float=False, master=False, loss_scale=0.0))
    grid = F.affine_grid(theta, [n, 3, s.size, s.size], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return x.to(images.COMPUTE[s.dtype], memory_format=images.LAYOUT[s.memory_format])


def centre(raw: torch.Tensor, size: int) -> torch.Tensor:
    """The middle size x size of the images, as they are; images that are smaller stay whole."""
    top, left = (max(0, (side - size) // 2) for side in raw.shape[2:])
    return raw[:, :, top:top + size, left:left + size]
