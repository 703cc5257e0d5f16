"""Image folders as tensors: one subfolder per class, every image scaled and cropped to the same square.

    folder/train/CLASS/*.jpg and folder/val/CLASS/*.jpg         ImageNet's layout
    folder/CLASS/*.png                                          no split of its own: some are held out

Images become uint8 (3, size, size): the short side scaled to `size`, the centre cropped. .npy (uint8, h x w x 3 or
h x w) and binary .ppm/.pgm are read here, everything else by Pillow, which has to be installed then. Sets of up to
MEMORY bytes are decoded once; larger ones batch by batch (`LazyImages`), with threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from perfscope.errors import DataError, EnvironmentError_

OWN = (".npy", ".ppm", ".pgm")
PILLOW = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MEMORY = 4 << 30            # bytes of decoded images that are kept; ImageNet at 256x256 would take 250 GB
HOLDOUT = 0.1               # of the images, where the folder has no split of its own
SPLITS = ("val", "valid", "validation", "test")


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images that are decoded when they are indexed: images[index] is uint8 (n, 3, size, size) on `device`."""

    paths: tuple[Path, ...]
    size: int
    device: torch.device = torch.device("cpu")
    dtype = torch.uint8

    @property
    def shape(self) -> torch.Size:
        """As the tensor of all of them would have it."""
        return torch.Size((len(self.paths), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index) -> torch.Tensor:
        rows = range(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index).tolist()
        chosen = [self.paths[i] for i in rows]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return torch.stack(list(pool.map(lambda path: decode(path, self.size), chosen))).to(self.device)

    def to(self, device) -> LazyImages:
        """The same, giving batches on a device."""
        return replace(self, device=torch.device(device))


def read(folder: Path, size: int, holdout: int = 0, stage: Callable[[str], None] = lambda text: None):
    """((train images, labels), (evaluation images, labels) or None, n to hold out, words) of an image folder.

    Images are a tensor or LazyImages, labels a tensor; classes are numbered in the order of their names. The training
    images come in a fixed random order, so that the last n of them are a sample. Raises DataError if the folder is
    none, EnvironmentError_ if Pillow is needed and missing.
    """
    train = folder / "train" if (folder / "train").is_dir() else folder
    test = next((folder / s for s in SPLITS if train != folder and (folder / s).is_dir()), None)
    classes = _classes(train)
    paths, labels = _listed(train, classes)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
    both = [([paths[i] for i in order], [labels[i] for i in order])] + ([_listed(test, classes)] if test else [])
    count = sum(len(paths) for paths, _ in both)
    lazy = 3 * size * size * count > MEMORY
    stage(f"reading {count} images of {len(classes)} classes")
    read = [(LazyImages(tuple(paths), size) if lazy else LazyImages(tuple(paths), size)[:], torch.tensor(labels))
            for paths, labels in both]
    words = f"image folder of {len(classes)} classes, {size}x{size}{', decoded as they are needed' if lazy else ''}"
    return read[0], read[1] if test else None, 0 if test else max(1, round(HOLDOUT * len(paths))), words


def part(images: torch.Tensor | LazyImages, rows: slice) -> torch.Tensor | LazyImages:
    """Some of the images (or labels), without decoding any."""
    return replace(images, paths=images.paths[rows]) if isinstance(images, LazyImages) else images[rows]


def decode(path: Path, size: int) -> torch.Tensor:
    """One image as uint8 (3, size, size). Raises DataError if it cannot be read, EnvironmentError_ without Pillow."""
    suffix = path.suffix.lower()
    try:
        pixels = _npy(path) if suffix == ".npy" else _pnm(path) if suffix in OWN else _pillow(path, size)
    except EnvironmentError_:
        raise
    except Exception as error:                      # decoders raise whatever they like on damaged files
        raise DataError(f"{path} is not a readable image: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                        "Take it out of the folder, or replace it.") from None
    height, width = pixels.shape[-2:]
    scale = size / min(height, width)
    if scale != 1:
        shape = max(size, round(height * scale)), max(size, round(width * scale))
        pixels = F.interpolate(pixels[None].float(), shape, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)[0]
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top:top + size, left:left + size].contiguous()


def _classes(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []
    if len(names) < 2:
        raise DataError(f"{folder} is not an image folder: it has {len(names)} subfolders, one per class is needed",
                        "Lay it out as FOLDER/CLASS/*.jpg, or FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg.")
    return names


def _listed(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    if unknown := [c for c in _classes(folder) if c not in classes]:
        raise DataError(f"{folder / unknown[0]} is a class that the training images lack", "The classes of both must have the same names.")
    paths, labels = [], []
    for number, name in enumerate(classes):
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in OWN + PILLOW) if (folder / name).is_dir() else []
        if not found:
            raise DataError(f"{folder / name} has no images", f"Known endings: {' '.join(OWN + PILLOW)}")
        paths, labels = paths + found, labels + [number] * len(found)
    return paths, labels


def _npy(path: Path) -> torch.Tensor:
    array = np.load(path, allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"uint8 (h, w, 3) is expected, this is {array.dtype} {array.shape}")
    return _planes(array)


def _pnm(path: Path) -> torch.Tensor:
    data = path.read_bytes()
    header = re.match(rb"P([56])(?:\s+#[^\n]*)*\s+(\d{1,5})\s+(\d{1,5})\s+255\s", data)
    if not header:
        raise ValueError("no binary PPM or PGM with 255 levels")
    kind, width, height = (int(g) for g in header.groups())
    shape = (height, width, 3) if kind == 6 else (height, width)
    return _planes(np.frombuffer(data, np.uint8, int(np.prod(shape)), header.end()).reshape(shape))


def _pillow(path: Path, size: int) -> torch.Tensor:
    try:
        from PIL import Image
    except ImportError:
        raise EnvironmentError_(f"Pillow is not installed, and {path.name} needs it", "pip install pillow") from None
    with Image.open(path) as image:
        image.draft("RGB", (size, size))            # a JPEG of twice the size and more is decoded at a fraction of it
        return _planes(np.asarray(image.convert("RGB")))


def _planes(array: np.ndarray) -> torch.Tensor:
    """(h, w, 3) or (h, w) as a tensor (3, h, w)."""
    if 0 in array.shape:
        raise ValueError("it has no pixels")
    tensor = torch.from_numpy(np.array(array))
    return (tensor[..., None].expand(-1, -1, 3) if tensor.dim() == 2 else tensor).permute(2, 0, 1).contiguous()
