"""The file formats that MNIST and CIFAR-10 come in, read without trusting them: NumPy arrays or one DataError.

Every reader checks the checksum first, then the sizes, then the range of the labels, and gives arrays only when all of
it is right. Images are uint8 (n, c, h, w), labels int64 (n,). The formats are described at yann.lecun.com/exdb/mnist
(idx) and www.cs.toronto.edu/~kriz/cifar.html (binary records; pickled batches of Python 2).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from perfscope.errors import DataError

CLASSES = 10
PIXELS = 3 * 32 * 32        # of a CIFAR-10 image: planes R, G, B of 32 rows of 32
RECORD = 1 + PIXELS         # the label's byte in front
BATCH = 10_000              # images in each CIFAR-10 file
DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError, struct.error)      # what truncated or altered archives raise

Arrays = tuple[np.ndarray, np.ndarray]


def verified(path: Path, algorithm: str, expected: str) -> bytes:
    """The file's bytes, if their digest is the expected one; DataError if it is not, or the file cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "Check the file, or take it away.") from None
    found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise _wrong(path, f"is not the official file: its {algorithm.upper()} is {found}, not {expected} ({len(data)} bytes)")
    return data


def idx(path: Path, md5: str, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of `shape` in a gzipped idx file. Raises DataError unless checksum, header and length are right."""
    packed = verified(path, "md5", md5)
    wanted = 4 + 4 * len(shape) + int(np.prod(shape))
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            data = file.read(wanted + 1)            # one byte more shows what is too long, a bomb is not unpacked
        header = struct.unpack_from(f">4B{len(shape)}I", data)
    except DAMAGE as error:
        raise _wrong(path, f"is damaged: {error}") from None
    if header != (0, 0, 8, len(shape), *shape) or len(data) != wanted:
        raise _wrong(path, f"is not an idx file of {' x '.join(map(str, shape))} bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def records(data: bytes, path: Path, n: int = BATCH) -> Arrays:
    """(images, labels) of n CIFAR-10 records. Raises DataError if they are not n, or a label is no class."""
    if len(data) != n * RECORD:
        raise _wrong(path, f"has {len(data)} bytes, {n} CIFAR-10 records have {n * RECORD}")
    table = np.frombuffer(data, np.uint8).reshape(n, RECORD)
    return table[:, 1:].reshape(n, 3, 32, 32), labels(table[:, 0], path)


def binary(path: Path, sha1: str, n: int = BATCH) -> Arrays:
    """(images, labels) of one file in CIFAR-10's binary layout, which is the one with this SHA-1."""
    return records(verified(path, "sha1", sha1), path, n)


def members(path: Path, md5: str, names: list[str], limit: int) -> list[bytes]:
    """The bytes of the named regular files of a .tar.gz, in the order of `names`; nothing is unpacked to the disk.

    Raises DataError if the checksum is wrong, one is missing, is no regular file or has more than `limit` bytes.
    """
    packed = verified(path, "md5", md5)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            for member in archive:
                if member.name in names and member.isfile() and member.size <= limit:
                    found[member.name] = archive.extractfile(member).read()
    except DAMAGE as error:
        raise _wrong(path, f"is damaged: {error}") from None
    if missing := [n for n in names if n not in found]:
        raise _wrong(path, f"lacks {missing[0]} as a file of at most {limit} bytes")
    return [found[n] for n in names]


def pickled(data: bytes, path: Path, n: int = BATCH) -> Arrays:
    """(images, labels) of one pickled batch of n images. Nothing that the pickle names is imported or called.

    The only names it may use are NumPy's array and dtype, and stand-ins take their places; any other is a DataError.
    """
    try:
        batch = _Restricted(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:                      # an altered pickle can raise anything
        raise _wrong(path, f"is no CIFAR-10 batch: {error}") from None
    stored, labels = (batch.get(key, batch.get(key.decode())) if isinstance(batch, Mapping) else None
                      for key in (b"data", b"labels"))
    if not (isinstance(stored, _Array) and stored.shape == (n, PIXELS) and len(stored.raw) == n * PIXELS):
        raise _wrong(path, f"is no CIFAR-10 batch: its data are not {n} x {PIXELS} bytes")
    if not (isinstance(labels, list) and len(labels) == n and all(type(x) is int and 0 <= x < CLASSES for x in labels)):
        raise _wrong(path, f"is no CIFAR-10 batch: its labels are not {n} numbers below {CLASSES}")
    order = "F" if stored.fortran else "C"
    images = np.frombuffer(stored.raw, np.uint8).reshape(n, PIXELS, order=order)
    return images.reshape(n, 3, 32, 32), np.array(labels, np.int64)


def labels(values: np.ndarray, path: Path) -> np.ndarray:
    """int64 labels, all of them a class; DataError if one is not."""
    if values.max(initial=0) >= CLASSES:
        raise _wrong(path, f"has a label {values.max()}; the classes are 0 to {CLASSES - 1}")
    return values.astype(np.int64)


def _wrong(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}", "Delete it, and it is downloaded from its official place, or put the official file there.")


# ---------------------------------------------------------------- pickles

class _DType:
    """Stands in for numpy.dtype: remembers what it was called with."""

    def __init__(self, code=None, *flags):
        self.code = code

    def __setstate__(self, state):
        pass


class _Array:
    """Stands in for numpy.ndarray: remembers the shape, order and bytes of a uint8 array."""

    shape, fortran, raw = (), False, b""

    def __setstate__(self, state):
        _, self.shape, dtype, self.fortran, raw = state
        if not isinstance(dtype, _DType) or dtype.code not in (b"u1", "u1") or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not of bytes")
        self.raw = raw


def _new_array(*_) -> _Array:
    return _Array()


class _Restricted(pickle.Unpickler):
    """Loads plain values and uint8 arrays; refuses every other name."""

    KNOWN = {(module, name): stand_in for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
             for name, stand_in in (("_reconstruct", _new_array), ("ndarray", _Array), ("dtype", _DType))}

    def find_class(self, module: str, name: str):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR-10 batch does")
        return self.KNOWN[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to something outside of itself")
