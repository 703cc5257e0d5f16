"""Synthetic batches and the real input work: pad, crop, flip, cutout, normalise; windows of tokens.

Two kinds of input feed a step. A *batch* is random data made once, so that its cost is nothing: the "preloaded
random data" variant. A *pipeline* does in this process, for every batch, what the recipes do: it indexes shuffled
uint8 images, augments them and makes them float32. Its images are synthetic, the work is not. Both give CPU tensors;
the step moves them to the device. Image batches are (n, channels, height, width), labels (n,) int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F

from perfscope.errors import WorkloadError

SAMPLES_BYTES = 64 << 20    # at most this many bytes of stored images: more would only cost memory and start-up
LARGE = 64                  # images of this side and more are cropped out of a larger one, as ImageNet recipes do
STORED = 256 / 224          # side of the stored image / side of the crop (ImageNet: 224 out of 256)
PAD, CUTOUT = 4, 8          # pixels, CIFAR recipe (REFERENCES section 2)

Batch = tuple[torch.Tensor, torch.Tensor]


# ---------------------------------------------------------------- random batches

def image_batch(shape: tuple[int, ...], classes: int, seed: int = 0) -> Callable[[int], Batch]:
    """batch(n) -> standard normal float32 images (n, *shape) and labels below `classes`; never zeros, whose
    multiplication costs less power and so less time. The same n gives the same batch."""
    def batch(n: int) -> Batch:
        g = torch.Generator().manual_seed(seed)
        return torch.randn(n, *shape, generator=g), torch.randint(classes, (n,), generator=g)
    return batch


def token_batch(context: int, vocab: int, seed: int = 0) -> Callable[[int], Batch]:
    """batch(n) -> int64 tokens (n, context), and the same tokens one place later."""
    def batch(n: int) -> Batch:
        g = torch.Generator().manual_seed(seed)
        tokens = torch.randint(vocab, (n, context + 1), generator=g)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return batch


def fixed_rows(pair, n: int):
    """Any nest of tensors (tuples, lists, mappings) with its rows repeated or cut to n.

    Rows are what the first tensor's first dimension counts; tensors of another length (a table of positions, a
    scalar) are left as they are. Mappings come back as plain dicts. Raises WorkloadError if there is no row.
    """
    rows = next((t.shape[0] for t in tensors(pair) if t.dim()), 0)
    if not rows:
        raise WorkloadError("the batch holds no tensor with at least one row",
                            "Give (inputs, target) of tensors whose first dimension is the sample.")

    def fit(value):
        if isinstance(value, torch.Tensor):
            if not value.dim() or value.shape[0] != rows:
                return value
            return value.repeat(-(-n // rows), *[1] * (value.dim() - 1))[:n].contiguous() if n > rows else value[:n]
        if isinstance(value, Mapping):
            return {k: fit(v) for k, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(fit, value))
        return type(value)(map(fit, value)) if isinstance(value, (tuple, list)) else value

    return fit(pair)


def tensors(value) -> Iterator[torch.Tensor]:
    """All tensors in a batch: itself, or those in its dictionaries, tuples and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors(v)


# ---------------------------------------------------------------- the work on a batch of images

def pad_reflect(images: torch.Tensor, pixels: int = PAD) -> torch.Tensor:
    """The images with a mirrored border on all four sides; any dtype."""
    return F.pad(images, (pixels,) * 4, mode="reflect")


def random_crop(images: torch.Tensor, height: int, width: int, g: torch.Generator | None = None) -> torch.Tensor:
    """For each image a window of height x width at a place of its own; any dtype."""
    n = len(images)
    windows = images.unfold(2, height, 1).unfold(3, width, 1)      # a view (n, c, places y, places x, height, width)
    at = {"generator": g, "device": images.device}
    y = torch.randint(windows.shape[2], (n,), **at)
    x = torch.randint(windows.shape[3], (n,), **at)
    return windows[torch.arange(n, device=images.device), :, y, x]


def random_flip(images: torch.Tensor, g: torch.Generator | None = None) -> torch.Tensor:
    """Each image mirrored left to right with probability one half; any dtype."""
    mirrored = torch.rand(len(images), generator=g, device=images.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def cutout(images: torch.Tensor, size: int = CUTOUT, g: torch.Generator | None = None) -> torch.Tensor:
    """Zeroes, in place, a size x size square (the mean, once normalised) at a random place of each image."""
    n, _, height, width = images.shape
    at = {"generator": g, "device": images.device}
    y0 = torch.randint(max(1, height - size + 1), (n, 1), **at)
    x0 = torch.randint(max(1, width - size + 1), (n, 1), **at)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    hole = ((y >= y0) & (y < y0 + size))[:, :, None] & ((x >= x0) & (x < x0 + size))[:, None, :]
    return images.masked_fill_(hole[:, None], 0)


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """float32 images with mean 0 and standard deviation 1 per channel; `mean` and `std` in the units of `images`."""
    return images.float().sub_(mean.view(1, -1, 1, 1)).div_(std.view(1, -1, 1, 1))


# ---------------------------------------------------------------- pipelines

def shuffled(samples: int, n: int, g: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless index batches of n, epoch after epoch: no sample comes again before all others have come."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < n:
            left = torch.cat([left, torch.randperm(samples, generator=g)])
        yield left[:n]
        left = left[n:]


def pinned(batch: Batch, pin: bool) -> Batch:
    """The batch in page-locked memory, for an asynchronous transfer, if this process has begun to use CUDA."""
    return tuple(t.pin_memory() for t in batch) if pin and torch.cuda.is_initialized() else batch


def batches(images: torch.Tensor, labels: torch.Tensor, shape: tuple[int, ...], n: int, augment: bool = True,
            seed: int = 0, pin: bool = True) -> Iterator[Batch]:
    """Endless (images, labels) of n out of stored uint8 images (samples, c, h, w), shuffled, made float32.

    One channel: normalise only (MNIST). Stored as large as `shape`: pad 4 reflect, crop, flip, normalise, cutout 8x8
    (CIFAR). Stored larger: crop, flip, normalise (ImageNet). `augment=False` crops the centre. Deterministic in `seed`.
    """
    g = torch.Generator().manual_seed(seed)
    _, height, width = shape
    sample = images[:256].float()
    mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    padded = images.shape[2:] == (height, width)
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    for index in shuffled(len(images), n, g):
        x = images[index]
        if augment and images.shape[1] > 1:
            x = random_flip(random_crop(pad_reflect(x) if padded else x, height, width, g), g)
            x = normalise(x, mean, std)
            x = cutout(x, g=g) if padded else x
        else:
            x = normalise(x[:, :, top:top + height, left:left + width], mean, std)
        yield pinned((x.contiguous(), labels[index]), pin)


def image_pipeline(shape: tuple[int, ...], classes: int, samples: int = 2048, augment: bool = True, seed: int = 0,
                   pin: bool = True) -> Callable[[int], Iterator[Batch]]:
    """data(n) -> endless batches of the real input work on synthetic uint8 images; see `batches`.

    The images are made at the first call and kept; fewer than `samples` where that many would pass 64 MiB.
    """
    channels, height, width = shape
    large = channels > 1 and min(height, width) >= LARGE
    stored = (channels, round(height * STORED), round(width * STORED)) if large else tuple(shape)
    samples = max(1, min(samples, SAMPLES_BYTES // (stored[0] * stored[1] * stored[2])))
    kept: list[torch.Tensor] = []

    def data(n: int) -> Iterator[Batch]:
        if not kept:
            g = torch.Generator().manual_seed(seed)
            kept.append(torch.randint(256, (samples, *stored), dtype=torch.uint8, generator=g))
            kept.append(torch.randint(classes, (samples,), generator=g))
        return batches(*kept, shape, n, augment, seed, pin)
    return data


def token_pipeline(context: int, vocab: int, tokens: int = 1 << 20, seed: int = 0,
                   pin: bool = True) -> Callable[[int], Iterator[Batch]]:
    """data(n) -> endless (n, context) int64 windows at random places of a uint16 array, and those one place later."""
    kept: list[torch.Tensor] = []

    def data(n: int) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(seed)
        if not kept:
            array = torch.randint(vocab, (max(tokens, context + 2),), generator=g, dtype=torch.int32)
            kept.append(array.to(torch.uint16))
        return windows(kept[0], context, n, g, pin)
    return data


def windows(array: torch.Tensor, context: int, n: int, g: torch.Generator, pin: bool = True) -> Iterator[Batch]:
    """Endless batches of n windows of a one-dimensional token array: inputs, and targets one place later."""
    while True:
        starts = torch.randint(len(array) - context, (n,), generator=g).tolist()
        both = torch.stack([array[i:i + context + 1].to(torch.int64) for i in starts])
        yield pinned((both[:, :-1].contiguous(), both[:, 1:].contiguous()), pin)
