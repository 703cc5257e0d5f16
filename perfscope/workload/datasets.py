"""MNIST, CIFAR-10 and image folders as tensors: found in a folder or fetched from their official places, verified, split in words.

    data = load("mnist")                        # $PERFSCOPE_DATA, then the user's cache; downloaded if neither has it
    data = load("cifar10", holdout=5000)        # trains on 45 000 and evaluates on 5 000 of the 50 000 training images
    data = load("images:128", "photos")         # an image folder, scaled to 128x128: see image_folder
    data.split                                  # what the certificate says

Layouts that are understood, in the folder itself or below it: MNIST's four gzip files; CIFAR-10's binary files,
cifar-10-binary.tar.gz, cifar-10-python.tar.gz and its unpacked batches. Where the exact test set is missing, the last
5 000 training images are held out. "cifar10:exact1017" evaluates on the first 1 017 official test images, "cifar10:jpeg75"
on lossy copies of all of them, "cifar10:batch1" needs data_batch_1.bin only: a smoke test. Nothing is used unless every
file of it has the official checksum.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from perfscope.errors import UsageError
from perfscope.workload import image_folder, sources

SHAPES = {"mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10), "images": ((3, 256, 256), 1000)}
VARIANTS = {"mnist": ("",), "cifar10": ("", "exact1017", "jpeg75", "batch1"), "images": ("", "SIZE")}
HOLDOUT = 5_000             # of 50 000, where there is no exact test set: the protocol is fixed, not chosen per run
SMOKE_HOLDOUT = 1_000       # of the 10 000 of data_batch_1
WORDS = {"exact1017": "the first 1 017 official test images, a sample (standard error 0.75 points at 94 %)",
         "jpeg75": "lossy (JPEG) copies of the 10 000 test images, not comparable with published accuracies"}
SIZES = range(8, 1025)      # pixels
TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (n, c, h, w) and labels int64 (n,), to train on and to evaluate on.

    Images of a large image folder are LazyImages, which look like a tensor and are decoded when they are indexed. `split`
    says for the certificate what is trained and evaluated on, `source` which files it came from, without their path.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    split: str
    source: str

    def to(self, device) -> Dataset:
        """The same on a device."""
        return replace(self, **{field: getattr(self, field).to(device) for field in TENSORS if getattr(self, field) is not None})


def load(name: str, folder: str | os.PathLike | None = None, holdout: int = 0, download: bool = True,
         stage: Callable[[str], None] = lambda text: None) -> Dataset:
    """The data set of that name: "mnist", "cifar10", "cifar10:VARIANT", or "images:SIZE" for an image folder.

    `folder`: where to look, and to download to; left out, $PERFSCOPE_DATA and then the user's cache (image folders: the
    folder itself; left out, `images` in one of these). `holdout` n > 0 evaluates on the last n training images, which
    are then not trained on, instead of the test set. Raises DataError if it is not there or a file is not the official
    one, EnvironmentError_ if it cannot be downloaded, UsageError for an unknown name or a holdout that leaves nothing.
    """
    base, _, variant = name.partition(":")
    sized = base == "images" and (not variant or variant.isdigit() and int(variant) in SIZES)
    if not sized and (base == "images" or variant not in VARIANTS.get(base, ())):
        known = [f"{b}:{v}".rstrip(":") for b, variants in VARIANTS.items() for v in variants]
        raise UsageError(f"there is no data set {name!r}", f"Known: {', '.join(known)} ({SIZES[0]} to {SIZES[-1]})")
    if holdout and variant in WORDS:
        raise UsageError(f"{name} names what is evaluated on, and so does a holdout of {holdout}", f"Take one: {base} with a holdout, or {name}.")
    folders = [Path(folder).expanduser()] if folder else _folders()
    if base == "images":
        place = folders[0] if folder else next((f / "images" for f in folders if (f / "images").is_dir()), folders[0] / "images")
        train, test, default, source = image_folder.read(place, int(variant or SHAPES["images"][0][-1]), holdout, stage)
        words = f"the {_spaced(len(test[1]))} images of the folder's own split" if test else ""
        return _dataset(name, train, test, holdout or default, words, source)
    read = sources.mnist if base == "mnist" else sources.cifar10
    train, test, source = read(variant, folders, download, stage)
    default = 0 if test else SMOKE_HOLDOUT if variant == "batch1" else HOLDOUT
    train, test = (pair and tuple(torch.from_numpy(np.array(a)) for a in pair) for pair in (train, test))
    return _dataset(name, train, test, holdout or default, WORDS.get(variant, "the official 10 000 test images"), source)


def synthetic(name: str, n_train: int = 2048, n_test: int = 512, seed: int = 0) -> Dataset:
    """Random images and labels in the shape of a data set: for warming up and for tests. No network can learn them."""
    base, _, variant = name.partition(":")
    if base not in SHAPES:
        raise UsageError(f"there is no data set {name!r}", f"Known: {', '.join(SHAPES)}")
    shape, classes = SHAPES[base]
    if variant.isdigit():
        shape = (shape[0], int(variant), int(variant))
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n_train + n_test, *shape), dtype=torch.uint8, generator=g)
    labels = torch.randint(classes, (n_train + n_test,), generator=g)
    return Dataset(name, images[:n_train], labels[:n_train], images[n_train:], labels[n_train:],
                   f"{_spaced(n_train)} random images, evaluated on {_spaced(n_test)} random images", "random")


def _dataset(name: str, train, test, holdout: int, words: str, source: str) -> Dataset:
    """The data set of these (images, labels), with the last `holdout` training images held out where that is asked for."""
    n = len(train[1])
    if not 0 <= holdout < n:
        raise UsageError(f"a holdout of {holdout} leaves nothing of {n} training images", f"Choose one from 0 to {n - 1}.")
    if holdout:
        cut = n - holdout
        train, test = ([image_folder.part(a, s) for a in train] for s in (slice(cut), slice(cut, n)))
        words = f"{_spaced(holdout)} held-out training images"
    return Dataset(name, *train, *test, f"{_spaced(len(train[1]))} training images, evaluated on {words}", source)


def _spaced(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _folders() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perfscope"
    named = os.environ.get("PERFSCOPE_DATA")
    return [Path(named).expanduser(), cache] if named else [cache]
