"""Where the files of MNIST and CIFAR-10 are, what they are called, and their official checksums: NumPy arrays of them.

`mnist` and `cifar10` look through folders for a layout that has all that is wanted, download what is nowhere, and give
(training arrays, test arrays or None, words for the record). No path goes into the words: records get shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from perfscope.errors import DataError
from perfscope.workload import archives
from perfscope.workload.archives import Arrays
from perfscope.workload.downloads import Remote, fetch

MNIST_PLACE = "https://ossci-datasets.s3.amazonaws.com/mnist/"          # torchvision's mirror of the four files
MNIST = tuple(Remote(MNIST_PLACE + name, size, md5) for name, size, md5 in (
    ("train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
    ("t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
    ("t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c")))
MNIST_SHAPES = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))

CIFAR_PLACE = "https://www.cs.toronto.edu/~kriz/"                       # MD5s as on its page
CIFAR_BINARY = Remote(CIFAR_PLACE + "cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530")
CIFAR_PYTHON = Remote(CIFAR_PLACE + "cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a")
TRAIN = ("1", "2", "3", "4", "5")
#: Part -> file, SHA-1, images. The official six as in MXNet's gluon.data.vision.CIFAR10; the other two as unpacked by
#: the script beside them, whose README says what they are.
CIFAR_FILES = {
    "1": ("data_batch_1.bin", "aadd24acce27caa71bf4b10992e9e7b2d74c2540", archives.BATCH),
    "2": ("data_batch_2.bin", "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795", archives.BATCH),
    "3": ("data_batch_3.bin", "1dd00a74ab1d17a6e7d73e185b69dbf31242f295", archives.BATCH),
    "4": ("data_batch_4.bin", "aab85764eb3584312d3c7f65fd2fd016e36a258e", archives.BATCH),
    "5": ("data_batch_5.bin", "26e2849e66a845b7f1e4614ae70f4889ae604628", archives.BATCH),
    "test": ("test_batch.bin", "67eb016db431130d61cd03c7ad570b013799c88c", archives.BATCH),
    "exact1017": ("test_batch_exact1017.bin", "af7b4a4928acdfdd54976350b1bf270ac33ce3a1", 1_017),
    "jpeg75": ("test_batch_jpeg75.bin", "4a8b485c45a2db327104f044d89d6b02106ee711", archives.BATCH),
}
#: Part -> pickled batch, MD5, as in torchvision.datasets.CIFAR10.
CIFAR_PICKLES = {
    "1": ("data_batch_1", "c99cafc152244af753f735de768cd75f"), "2": ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
    "3": ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"), "4": ("data_batch_4", "634d18415352ddfa80567beed471001a"),
    "5": ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"), "test": ("test_batch", "40351d587109b95175f43aff81a1287e"),
}
MEMBER_BYTES = 40_000_000   # no file of either archive is larger: 30 730 000 and 31 035 999 bytes at most

Stage = Callable[[str], None]


def mnist(variant: str, folders: list[Path], download: bool, stage: Stage) -> tuple[Arrays, Arrays, str]:
    """MNIST from its four gzip files. Raises DataError, EnvironmentError_."""
    for place in _places(folders, "mnist", "MNIST/raw"):
        if all((place / remote.name).is_file() for remote in MNIST):
            break
    else:
        if not download:
            raise _absent("MNIST", folders, f"{MNIST[0].name} and the other three files")
        place = _target(folders) / "mnist"
        for remote in MNIST:
            fetch(remote, place, stage)
    arrays = [archives.idx(place / remote.name, remote.md5, shape) for remote, shape in zip(MNIST, MNIST_SHAPES)]
    for remote, labels in zip(MNIST[1::2], arrays[1::2]):
        archives.labels(labels, place / remote.name)
    train, test = ((images[:, None], labels.astype(np.int64)) for images, labels in (arrays[:2], arrays[2:]))
    return train, test, "MNIST, the four official gzip files (MD5 checked)"


def cifar10(variant: str, folders: list[Path], download: bool, stage: Stage) -> tuple[Arrays, Arrays | None, str]:
    """CIFAR-10 from what is there; no test arrays where there is no exact test set. Raises DataError, EnvironmentError_.

    Variant "" takes the official test set, "exact1017" and "jpeg75" those files, "batch1" only the first training batch.
    """
    train = ("1",) if variant == "batch1" else TRAIN
    wanted = [(*train, variant)] if variant in CIFAR_FILES else [train] if variant else [(*train, "test"), train]
    places = _places(folders, "cifar10", *(f"{above}{b}" for above in ("", "cifar10/") for b in ("cifar-10-batches-bin", "cifar-10-batches-py")))
    for parts in wanted:
        for place in places:
            for words, read in _cifar_sources(place, parts):
                return _joined(words, read, parts, train, stage)
    packed = [place for place in places if any(place.glob("cifar10_train_batch*.medxz"))]
    if packed:
        raise DataError(f"{packed[0]} has CIFAR-10 in packed form only (*.medxz)", "Unpack it into a new folder, about 25 s, and "
                        f"name that with --data: python {packed[0].parent / 'unpack_cifar10.py'} FOLDER")
    if not download or variant in ("exact1017", "jpeg75"):
        raise _absent("CIFAR-10", folders, f"{CIFAR_BINARY.name}, or {', '.join(CIFAR_FILES[p][0] for p in wanted[0])},")
    path = fetch(CIFAR_BINARY, _target(folders) / "cifar10", stage)
    parts = wanted[0]
    return _joined(*next(iter(_cifar_sources(path.parent, parts))), parts, train, stage)


def _cifar_sources(place: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], list[Arrays]]]]:
    """What in this folder has all these parts: (words, reader of the parts), the cheapest to read first."""
    if all((place / CIFAR_FILES[p][0]).is_file() for p in parts):
        yield "CIFAR-10, binary files (SHA-1 checked)", lambda: [
            archives.binary(place / file, sha1, n) for file, sha1, n in map(CIFAR_FILES.get, parts)]
    if not set(parts) <= set(CIFAR_PICKLES):
        return
    if all((place / CIFAR_PICKLES[p][0]).is_file() for p in parts):
        yield "CIFAR-10, pickled batches (MD5 checked)", lambda: [
            archives.pickled(data, path) for path, data in [            # all are checked before the first is opened
                (place / file, archives.verified(place / file, "md5", md5)) for file, md5 in map(CIFAR_PICKLES.get, parts)]]
    for remote, under, files, reader in ((CIFAR_BINARY, "cifar-10-batches-bin", CIFAR_FILES, archives.records),
                                         (CIFAR_PYTHON, "cifar-10-batches-py", CIFAR_PICKLES, archives.pickled)):
        path = place / remote.name
        if path.is_file():
            yield f"CIFAR-10, {remote.name} (MD5 checked)", lambda: [
                reader(data, path) for data in archives.members(path, remote.md5, [f"{under}/{files[p][0]}" for p in parts], MEMBER_BYTES)]


def _joined(words: str, read: Callable[[], list[Arrays]], parts: tuple[str, ...], train: tuple[str, ...], stage: Stage):
    stage(f"verifying and reading {words.partition(' (')[0]}")
    arrays = read()
    first = arrays[:len(train)]
    return tuple(np.concatenate(a) for a in zip(*first)), arrays[len(train)] if len(parts) > len(train) else None, words


def _places(folders: list[Path], *below: str) -> list[Path]:
    return [place for folder in folders for place in (folder, *(folder / b for b in below)) if place.is_dir()]


def _target(folders: list[Path]) -> Path:
    """The first of the folders that can be written to, or made."""
    for folder in folders:
        there = next(p for p in (folder, *folder.parents) if p.exists())
        if there.is_dir() and os.access(there, os.W_OK):
            return folder
    return folders[-1]


def _absent(name: str, folders: list[Path], files: str) -> DataError:
    return DataError(f"{name} is not in {' or '.join(map(str, folders))}",
                     f"Put {files} there, name another folder with --data or $PERFSCOPE_DATA, or let it be downloaded.")
