"""Data sets: every layout, every error path, the splits in words, downloads from a server of this machine's own."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perfscope.errors import DataError, EnvironmentError_, UsageError
from perfscope.workload import archives, datasets, downloads, image_folder, sources
from perfscope.workload.datasets import load, synthetic
from perfscope.workload.downloads import Remote, fetch

DATA = os.environ.get("PERFSCOPE_DATA", "")
N = 20                      # images in each file of the small CIFAR-10 below


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def says(error: pytest.ExceptionInfo) -> str:
    assert error.value.message and error.value.hint and "Traceback" not in str(error.value)
    return f"{error.value.message} | {error.value.hint}"


# ---------------------------------------------------------------- a small CIFAR-10, and a small MNIST

def records(n: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 256, (n, archives.RECORD), dtype=np.uint8)
    table[:, 0] = rng.integers(0, 10, n)
    return table.tobytes()


def batch_of(data: bytes) -> dict:
    table = np.frombuffer(data, np.uint8).reshape(-1, archives.RECORD)
    return {b"batch_label": b"training batch", b"labels": table[:, 0].tolist(), b"data": table[:, 1:].copy(), b"filenames": []}


def tarred(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.read_bytes()


class Small:
    """CIFAR-10 with 20 images a file, its checksums in place of the official ones, written in any layout."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch.setattr
        monkeypatch.setattr(archives, "BATCH", N)
        for reader in (archives.records, archives.pickled, archives.binary):
            monkeypatch.setattr(reader, "__defaults__", (N,))
        self.bytes = {part: records(17 if part == "exact1017" else N, i) for i, part in enumerate(sources.CIFAR_FILES)}
        monkeypatch.setattr(sources, "CIFAR_FILES", {
            part: (file, sha1(self.bytes[part]), len(self.bytes[part]) // archives.RECORD)
            for part, (file, _, _) in sources.CIFAR_FILES.items()})
        self.pickles = {part: pickle.dumps(batch_of(self.bytes[part]), protocol=3) for part in sources.CIFAR_PICKLES}
        self.believe_pickles()
        monkeypatch.setattr(datasets, "HOLDOUT", 30)
        monkeypatch.setattr(datasets, "SMOKE_HOLDOUT", 5)

    def believe_pickles(self):
        self.patch(sources, "CIFAR_PICKLES", {p: (sources.CIFAR_PICKLES[p][0], md5(self.pickles[p])) for p in self.pickles})

    def binary(self, folder: Path, *parts: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts or (*sources.TRAIN, "test"):
            (folder / sources.CIFAR_FILES[part][0]).write_bytes(self.bytes[part])
        return folder

    def unpacked(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for part, data in self.pickles.items():
            (folder / sources.CIFAR_PICKLES[part][0]).write_bytes(data)
        return folder

    def archive(self, folder: Path, kind: str, files: dict[str, bytes] | None = None, name: str = "") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        table = sources.CIFAR_FILES if kind == "BINARY" else sources.CIFAR_PICKLES
        under = "cifar-10-batches-bin" if kind == "BINARY" else "cifar-10-batches-py"
        content = self.bytes if kind == "BINARY" else self.pickles
        files = files or {f"{under}/{table[p][0]}": content[p] for p in (*sources.TRAIN, "test")}
        remote = getattr(sources, f"CIFAR_{kind}")
        data = tarred(folder / (name or remote.name), files)
        self.patch(sources, f"CIFAR_{kind}", dataclasses.replace(remote, size=len(data), md5=md5(data)))
        return folder


@pytest.fixture
def small(monkeypatch):
    return Small(monkeypatch)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def digits(monkeypatch, tmp_path):
    """A folder with a small MNIST, whose checksums stand in place of the official ones; write(i, raw) alters a file."""
    rng = np.random.default_rng(0)
    shapes = ((30, 28, 28), (30,), (12, 28, 28), (12,))
    monkeypatch.setattr(sources, "MNIST_SHAPES", shapes)
    remotes = list(sources.MNIST)

    def write(i: int, raw: bytes, compressed: bytes = b"") -> None:
        data = compressed or gzip.compress(raw)
        (tmp_path / remotes[i].name).write_bytes(data)
        remotes[i] = dataclasses.replace(remotes[i], size=len(data), md5=md5(data))
        monkeypatch.setattr(sources, "MNIST", tuple(remotes))

    for i, shape in enumerate(shapes):
        write(i, idx(rng.integers(0, 10, shape, dtype=np.uint8)))
    return tmp_path, write


# ---------------------------------------------------------------- the real files

@pytest.mark.skipif(not (Path(DATA) / "mnist").is_dir(), reason="no MNIST in $PERFSCOPE_DATA")
def test_official_mnist():
    data = load("mnist", download=False)
    assert data.train_images.shape == (60_000, 1, 28, 28) and data.train_images.dtype == torch.uint8
    assert data.test_labels.shape == (10_000,) and data.test_labels.dtype == torch.int64
    assert data.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.split == "60 000 training images, evaluated on the official 10 000 test images"
    assert DATA not in data.source


@pytest.mark.skipif(not any(Path(DATA or "/none").glob("cifar10/*.medxz")), reason="no packed CIFAR-10 in $PERFSCOPE_DATA")
def test_packed_cifar10_says_how_to_unpack(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError) as error:
        load("cifar10")
    assert "packed form only" in says(error) and "unpack_cifar10.py FOLDER" in says(error)


# ---------------------------------------------------------------- MNIST

def test_mnist(digits, monkeypatch, tmp_path):
    folder, _ = digits
    data = load("mnist", folder)
    assert data.train_images.shape == (30, 1, 28, 28) and data.test_images.shape == (12, 1, 28, 28)
    below = tmp_path / "elsewhere"
    below.mkdir()
    os.symlink(folder, below / "mnist")
    assert torch.equal(load("mnist", below).train_images, data.train_images)
    monkeypatch.setenv("PERFSCOPE_DATA", str(below))
    assert torch.equal(load("mnist").test_labels, data.test_labels)
    held = load("mnist", folder, holdout=10)
    assert held.split == "20 training images, evaluated on 10 held-out training images"
    assert torch.equal(held.test_images, data.train_images[20:]) and torch.equal(held.train_labels, data.train_labels[:20])
    moved = data.to("meta")
    assert moved.train_images.device.type == moved.test_labels.device.type == "meta" and moved.split == data.split


def spoiled_mnist():
    image = np.zeros((30, 28, 28), np.uint8)
    label = np.zeros(30, np.uint8)
    yield "another checksum", 0, None, "MD5"
    yield "a wrong header", 0, b"\0\0\x0d\x03" + idx(image)[4:], "not an idx file"
    yield "another shape", 0, idx(image[:29]), "not an idx file"
    yield "too short", 0, idx(image)[:-1], "not an idx file"
    yield "too long", 0, idx(image) + b"x", "not an idx file"
    yield "nearly empty", 0, b"\0", "damaged"
    yield "a label of 10", 1, idx(label + 10), "label 10"


@pytest.mark.parametrize("what, i, raw, words", spoiled_mnist(), ids=lambda v: v if isinstance(v, str) else "")
def test_spoiled_mnist(digits, what, i, raw, words):
    folder, write = digits
    if raw is None:
        path = folder / sources.MNIST[i].name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        write(i, raw)
    with pytest.raises(DataError) as error:
        load("mnist", folder)
    assert words in says(error) and sources.MNIST[i].name in says(error)


def test_truncated_gzip_with_a_checksum_that_is_believed(digits):
    folder, write = digits
    write(0, b"", compressed=gzip.compress(bytes(range(256)) * 99)[:-40])
    with pytest.raises(DataError, match="damaged"):
        load("mnist", folder)


def test_mnist_with_a_file_missing(digits):
    folder, _ = digits
    (folder / sources.MNIST[3].name).unlink()
    with pytest.raises(DataError) as error:
        load("mnist", folder, download=False)
    assert "MNIST is not in" in says(error) and "--data" in says(error)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        archives.verified(tmp_path, "md5", "")


# ---------------------------------------------------------------- CIFAR-10: layouts and splits

def layouts(small, folder):
    yield small.binary(folder / "a")
    yield small.binary(folder / "b" / "cifar10").parent
    yield small.binary(folder / "c" / "cifar-10-batches-bin").parent
    yield small.archive(folder / "d", "BINARY")
    yield small.archive(folder / "e" / "cifar10", "PYTHON").parent
    yield small.unpacked(folder / "f" / "cifar-10-batches-py").parent


def test_every_layout_gives_the_same(small, tmp_path):
    expected = b"".join(small.bytes[p] for p in sources.TRAIN)
    table = np.frombuffer(expected, np.uint8).reshape(-1, archives.RECORD)
    for folder in layouts(small, tmp_path):
        data = load("cifar10", folder, download=False)
        assert data.train_images.shape == (5 * N, 3, 32, 32) and data.train_images.dtype == torch.uint8, folder
        assert np.array_equal(data.train_images.reshape(5 * N, -1).numpy(), table[:, 1:])
        assert data.train_labels.tolist() == table[:, 0].tolist() and data.train_labels.dtype == torch.int64
        assert data.test_images.numpy().tobytes() == np.frombuffer(small.bytes["test"], np.uint8).reshape(N, -1)[:, 1:].tobytes()
        assert "evaluated on the official" in data.split and str(tmp_path) not in data.source


def test_without_the_exact_test_set_training_images_are_held_out(small, tmp_path):
    small.binary(tmp_path, *sources.TRAIN, "exact1017", "jpeg75")
    data = load("cifar10", tmp_path)
    assert data.split == "70 training images, evaluated on 30 held-out training images"
    assert load("cifar10", tmp_path, holdout=7).split == "93 training images, evaluated on 7 held-out training images"
    both = torch.cat([data.train_images, data.test_images]).reshape(5 * N, -1).numpy()
    assert np.array_equal(both, np.frombuffer(b"".join(small.bytes[p] for p in sources.TRAIN), np.uint8).reshape(5 * N, -1)[:, 1:])


@pytest.mark.parametrize("variant, n, words", [("exact1017", 17, "first 1 017 official test images, a sample"),
                                               ("jpeg75", N, "lossy (JPEG)"), ("batch1", 5, "held-out")])
def test_variants(small, tmp_path, variant, n, words):
    small.binary(tmp_path, *(["1"] if variant == "batch1" else [*sources.TRAIN, variant]))
    data = load(f"cifar10:{variant}", tmp_path)
    assert len(data.test_labels) == n == len(data.test_images) and words in data.split
    assert len(data.train_labels) == (N - 5 if variant == "batch1" else 5 * N)


def test_the_official_test_set_is_found_before_anything_partial(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PERFSCOPE_DATA", str(small.binary(tmp_path / "partial", *sources.TRAIN)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(small.archive(tmp_path / "cache" / "perfscope", "BINARY").parent))
    assert "official" in load("cifar10", download=False).split


def test_holdout_of_the_official_set(small, tmp_path):
    data = load("cifar10", small.binary(tmp_path), holdout=40)
    assert data.split == "60 training images, evaluated on 40 held-out training images" and len(data.test_labels) == 40


@pytest.mark.parametrize("name, holdout, words", [
    ("cifar10", 100, "leaves nothing"), ("cifar10", -1, "leaves nothing"), ("cifar100", 0, "no data set"),
    ("cifar10:exact", 0, "no data set"), ("images:7", 0, "no data set"), ("cifar10:jpeg75", 5, "Take one")])
def test_what_cannot_be_asked_for(small, tmp_path, name, holdout, words):
    small.binary(tmp_path, *sources.TRAIN, "jpeg75")
    with pytest.raises(UsageError) as error:
        load(name, tmp_path, holdout, download=False)
    assert words in says(error)


# ---------------------------------------------------------------- CIFAR-10: wrong, truncated and poisoned files

def test_poisoned_binary_file(small, tmp_path):
    small.binary(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1                                 # one bit of one pixel
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        load("cifar10", tmp_path)
    assert "data_batch_3.bin" in says(error) and "SHA1" in says(error)


@pytest.mark.parametrize("data, words", [(records(N - 1, 0), "bytes"), (b"", "bytes"), (b"\x0a" + records(N, 0)[1:], "label 10")])
def test_binary_records(tmp_path, monkeypatch, data, words):
    with pytest.raises(DataError) as error:
        archives.records(data, tmp_path / "data_batch_1.bin", N)
    assert words in says(error)


@pytest.mark.parametrize("kind", ["BINARY", "PYTHON"])
def test_truncated_archive(small, tmp_path, kind):
    small.archive(tmp_path, kind)
    path = tmp_path / getattr(sources, f"CIFAR_{kind}").name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError) as error:
        load("cifar10", tmp_path)
    assert "MD5" in says(error)
    small.patch(sources, f"CIFAR_{kind}", dataclasses.replace(getattr(sources, f"CIFAR_{kind}"), md5=md5(path.read_bytes())))
    with pytest.raises(DataError, match="damaged"):         # the checksum believed: the reader sees it all the same
        load("cifar10", tmp_path)


def test_archive_without_a_file_or_with_one_too_large(small, tmp_path, monkeypatch):
    small.archive(tmp_path, "BINARY", {"cifar-10-batches-bin/data_batch_1.bin": small.bytes["1"]})
    with pytest.raises(DataError, match="lacks cifar-10-batches-bin/data_batch_2.bin"):
        load("cifar10", tmp_path)
    small.archive(tmp_path, "BINARY")
    monkeypatch.setattr(sources, "MEMBER_BYTES", 100)
    with pytest.raises(DataError, match="at most 100 bytes"):
        load("cifar10", tmp_path)


def test_archive_with_a_link_in_place_of_a_file(small, tmp_path):
    small.archive(tmp_path, "BINARY")
    path = tmp_path / sources.CIFAR_BINARY.name
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="lacks"):
        archives.members(path, md5(path.read_bytes()), ["cifar-10-batches-bin/data_batch_1.bin"], 1000)


class Evil:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def spoiled_batches():
    good = batch_of(records(N, 0))
    yield "a call", {**good, b"labels": Evil(os.system, "touch poisoned")}, "which no CIFAR-10 batch does"
    yield "a builtin", {**good, b"data": Evil(eval, "1")}, "which no CIFAR-10 batch does"
    yield "numpy's loader", {**good, b"data": Evil(np.load, "x")}, "which no CIFAR-10 batch does"
    yield "objects", {**good, b"data": np.array([None] * N)}, "not of bytes"
    yield "another shape", {**good, b"data": good[b"data"][:-1]}, "data are not"
    yield "no array", {**good, b"data": b"x" * N * 3072}, "data are not"
    yield "no data", {b"labels": []}, "data are not"
    yield "a list", [1, 2], "data are not"
    yield "a label of 10", {**good, b"labels": [10] * N}, "labels are not"
    yield "half a label", {**good, b"labels": [0.5] * N}, "labels are not"
    yield "too few labels", {**good, b"labels": [1]}, "labels are not"


@pytest.mark.parametrize("what, batch, words", spoiled_batches(), ids=lambda v: v if isinstance(v, str) and " " in v else "")
def test_poisoned_pickles_with_a_checksum_that_is_believed(small, tmp_path, monkeypatch, what, batch, words):
    monkeypatch.chdir(tmp_path)
    small.pickles["4"] = pickle.dumps(batch, protocol=3)
    small.believe_pickles()
    for folder in (small.unpacked(tmp_path / "a"), small.archive(tmp_path / "b", "PYTHON")):
        with pytest.raises(DataError) as error:
            load("cifar10", folder)
        assert words in says(error)
    assert not (tmp_path / "poisoned").exists()


def test_pickles_are_not_opened_before_their_checksum(small, tmp_path, monkeypatch):
    small.unpacked(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(small.pickles["1"])
    monkeypatch.setattr(archives, "pickled", lambda *a: pytest.fail("opened"))
    with pytest.raises(DataError, match="MD5"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x80\x03", b"\x80\x03}.", b"garbage", b"cos\nsystem\n(S'true'\ntR.", b"Pxyz\n."])
def test_what_is_no_pickle(tmp_path, data):
    with pytest.raises(DataError):
        archives.pickled(data, tmp_path / "data_batch_1", N)


def test_a_batch_as_python_2_wrote_it(tmp_path):
    """Protocol 2 as the official files have it: text keys, numpy.core.multiarray, the bytes as a string."""
    def text(s: bytes) -> bytes:
        return b"U" + bytes([len(s)]) + s

    pixels = bytes(range(256)) * 12
    batch = (b"\x80\x02}(" + text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
             + b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
             + b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + b"T" + struct.pack("<i", 3072) + pixels + b"tb"
             + text(b"labels") + b"]K\x07a" + b"u.")
    images, labels = archives.pickled(batch, tmp_path / "data_batch_1", 1)
    assert images.tobytes() == pixels and images.shape == (1, 3, 32, 32) and labels.tolist() == [7]


def test_nothing_there(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError) as error:
            load("cifar10", folder, download=False)
        assert "CIFAR-10 is not in" in says(error) and "data_batch_1.bin" in says(error)
    with pytest.raises(DataError, match="is not in"):
        load("cifar10:exact1017", tmp_path)                  # cannot be downloaded, so nothing is tried


# ---------------------------------------------------------------- downloads

class Server:
    """Files over HTTP on 127.0.0.1. `drop`: bytes after which a connection ends; `ranges`: whether Range is understood."""

    def __init__(self):
        self.files, self.asked, self.drop, self.ranges, self.length, self.status = {}, [], None, True, True, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.asked.append((self.path, wanted))
                data = outer.files.get(self.path.rsplit("/", 1)[-1])
                if data is None or outer.status:
                    return self.send_error(outer.status or 404)
                start = int(wanted[6:-1]) if wanted and outer.ranges else 0
                if start and start >= len(data):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                if outer.length:
                    self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:][:outer.drop])

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def remote(self, name: str, data: bytes) -> Remote:
        self.files[name] = data
        return Remote(self.place + name, len(data), md5(data))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    it = Server()
    yield it
    it.http.shutdown()
    it.http.server_close()


def parts(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != downloads.LOCK)


BYTES = np.random.default_rng(0).bytes(10_000)


def test_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "REPORT", 4000)
    remote, told = server.remote("file.gz", BYTES), []
    path = fetch(remote, tmp_path / "new", told.append)
    assert path.read_bytes() == BYTES and parts(path.parent) == ["file.gz"]
    assert len(told) == 3 and told[-1] == "downloading file.gz: 0.0 of 0.0 MB"
    fetch(remote, tmp_path / "new")
    assert len(server.asked) == 1, "it is there and right: nothing is asked for"
    path.write_bytes(b"spoiled")
    assert fetch(remote, tmp_path / "new").read_bytes() == BYTES


def test_a_dropped_connection_is_resumed(server, tmp_path):
    remote, server.drop = server.remote("file.gz", BYTES), 3000
    assert fetch(remote, tmp_path).read_bytes() == BYTES
    assert [r for _, r in server.asked] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_an_interrupted_command_is_resumed(server, tmp_path):
    remote = server.remote("file.gz", BYTES)

    def ctrl_c(text):
        raise KeyboardInterrupt

    downloads_report, downloads.REPORT = downloads.REPORT, 4000
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch(remote, tmp_path, ctrl_c)
    finally:
        downloads.REPORT = downloads_report
    (part,) = parts(tmp_path)
    assert part.endswith(".part") and (tmp_path / part).stat().st_size == 4000
    assert fetch(remote, tmp_path).read_bytes() == BYTES
    assert [r for _, r in server.asked] == [None, "bytes=4000-"] and parts(tmp_path) == ["file.gz"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_beginning_of_something_else_is_given_up(server, tmp_path, ranges):
    remote, server.ranges = server.remote("file.gz", BYTES), ranges
    (tmp_path / f"file.gz.{remote.md5[:8]}.part").write_bytes(b"x" * 5000)
    assert fetch(remote, tmp_path).read_bytes() == BYTES and parts(tmp_path) == ["file.gz"]


def test_a_server_that_drops_and_cannot_resume(server, tmp_path):
    remote = server.remote("file.gz", BYTES)
    server.ranges, server.drop = False, 3000
    with pytest.raises(EnvironmentError_) as error:
        fetch(remote, tmp_path)
    assert "ended early" in says(error) and "resume" in says(error) and 1 < len(server.asked) <= 1 + downloads.TRIES


@pytest.mark.parametrize("sent, length, words", [
    (BYTES[:-1] + b"?", True, "not the official"), (b"<html>log in first</html>", True, "offers 25 bytes"), (BYTES + b"x", True, "offers 10001"),
    (BYTES + b"x" * 2000, False, "not the official")])
def test_what_is_sent_is_not_the_file(server, tmp_path, sent, length, words):
    remote, server.length = server.remote("file.gz", BYTES), length
    server.files["file.gz"] = sent
    with pytest.raises(DataError) as error:
        fetch(remote, tmp_path)
    assert words in says(error) and parts(tmp_path) == []


def test_a_shorter_file_without_its_length(server, tmp_path):
    remote, server.length = server.remote("file.gz", BYTES), False
    server.files["file.gz"] = BYTES[:4000]
    with pytest.raises(EnvironmentError_, match="HTTP status 416"):
        fetch(remote, tmp_path)


@pytest.mark.parametrize("status, tries", [(404, 1), (403, 1), (503, downloads.TRIES)])
def test_refused(server, tmp_path, status, tries):
    remote, server.status = server.remote("file.gz", BYTES), status
    with pytest.raises(EnvironmentError_, match=f"HTTP status {status}"):
        fetch(remote, tmp_path)
    assert len(server.asked) == tries


def test_nobody_answers(server, tmp_path):
    remote = server.remote("file.gz", BYTES)
    server.http.server_close()
    server.http.shutdown()
    with pytest.raises(EnvironmentError_) as error:
        fetch(remote, tmp_path)
    assert "refused" in says(error) and "--data" in says(error)


def test_no_room_and_no_folder(server, tmp_path, monkeypatch):
    remote = server.remote("file.gz", BYTES)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentError_, match="cannot be written"):
        fetch(remote, tmp_path / "file")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(EnvironmentError_, match="are free"):
        fetch(remote, tmp_path)


def test_two_at_a_time_download_once(server, tmp_path):
    remote = server.remote("file.gz", BYTES)
    threads = [threading.Thread(target=fetch, args=(remote, tmp_path)) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(server.asked) == 1 and (tmp_path / "file.gz").read_bytes() == BYTES


def test_mnist_is_downloaded(server, digits, tmp_path, monkeypatch):
    folder, _ = digits
    monkeypatch.setattr(sources, "MNIST", tuple(server.remote(r.name, (folder / r.name).read_bytes()) for r in sources.MNIST))
    target, told = tmp_path / "target", []
    data = load("mnist", target, stage=told.append)
    assert parts(target / "mnist") == sorted(r.name for r in sources.MNIST)
    assert torch.equal(data.train_images, load("mnist", folder).train_images) and any("downloading" in t for t in told)
    monkeypatch.setenv("PERFSCOPE_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(os, "access", lambda path, mode: "cache" in str(path))         # only the cache can be written to
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    load("mnist")
    assert len(parts(tmp_path / "cache" / "perfscope" / "mnist")) == 4


def test_cifar10_is_downloaded(server, small, tmp_path):
    small.archive(tmp_path / "made", "BINARY")
    name = sources.CIFAR_BINARY.name
    small.patch(sources, "CIFAR_BINARY", server.remote(name, (tmp_path / "made" / name).read_bytes()))
    server.drop = 20_000
    data = load("cifar10", tmp_path / "target")
    assert len(data.train_labels) == 5 * N and len(server.asked) > 2
    assert torch.equal(load("cifar10", tmp_path / "target", download=False).train_images, data.train_images)


# ---------------------------------------------------------------- image folders, random data

def ppm(array: np.ndarray) -> bytes:
    return b"P6\n# made by a test\n%d %d\n255\n" % array.shape[1::-1] + array.tobytes()


@pytest.fixture
def photos(tmp_path):
    """Two splits of two classes; class b is bright."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 2)):
        for label, name in enumerate("ab"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                array = rng.integers(128 * label, 128 * label + 127, (40, 60, 3), dtype=np.uint8)
                if i % 2:
                    np.save(tmp_path / split / name / f"{i}.npy", array)
                else:
                    (tmp_path / split / name / f"{i}.ppm").write_bytes(ppm(array))
    return tmp_path


def test_image_folder(photos, monkeypatch):
    data = load("images:32", photos)
    assert data.train_images.shape == (12, 3, 32, 32) and data.test_images.dtype == torch.uint8
    assert data.split == "12 training images, evaluated on the 4 images of the folder's own split"
    assert data.source == "image folder of 2 classes, 32x32"
    bright = data.train_images.float().mean((1, 2, 3)) > 128
    assert torch.equal(bright.long(), data.train_labels) and data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_labels.tolist() != sorted(data.train_labels.tolist()), "in a random order"
    monkeypatch.setattr(image_folder, "MEMORY", 0)
    lazy = load("images:32", photos, holdout=3).to("cpu")
    assert isinstance(lazy.train_images, image_folder.LazyImages) and lazy.train_images.shape == (9, 3, 32, 32) and len(lazy.test_images) == 3
    assert torch.equal(lazy.train_images[torch.tensor([4, 0])], data.train_images[[4, 0]])
    assert torch.equal(lazy.test_images[1:], data.train_images[10:]) and "decoded as they are needed" in lazy.source


def test_image_folder_without_a_split(photos):
    data = load("images:40", photos / "train")
    assert data.split == "11 training images, evaluated on 1 held-out training images"
    exact = np.load(photos / "train" / "a" / "1.npy").transpose(2, 0, 1)[:, :, 10:50]
    assert any(np.array_equal(exact, image) for image in torch.cat([data.train_images, data.test_images]).numpy())


def test_formats(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.save(tmp_path / "g.npy", grey)
    (tmp_path / "g.pgm").write_bytes(b"P5 8 8 255\n" + grey.tobytes())
    for name in ("g.npy", "g.pgm"):
        assert image_folder.decode(tmp_path / name, 8).numpy().tolist() == [grey.tolist()] * 3
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pil.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "g.png")
    assert image_folder.decode(tmp_path / "g.png", 8).numpy().tolist() == [grey.tolist()] * 3


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(EnvironmentError_) as error:
        image_folder.decode(tmp_path / "x.jpg", 8)
    assert "Pillow is not installed" in says(error) and "pip install" in says(error)


@pytest.mark.parametrize("name, content", [
    ("x.npy", b"no array"), ("x.ppm", b"P3 1 1 255 0 0 0"), ("x.ppm", b"P6 9 9 255\n123"), ("x.ppm", b"P6 0 9 255\n"), ("x.jpg", b"no jpeg"), ("x.png", b"")])
def test_damaged_images(photos, name, content):
    if name.endswith(("jpg", "png")):
        pytest.importorskip("PIL", reason="Pillow is not installed")
    (photos / "train" / "a" / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load("images:32", photos)
    assert name in says(error) and "not a readable image" in says(error)


def test_arrays_that_are_no_images(tmp_path):
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.array([None])):
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
        with pytest.raises(DataError, match="not a readable image"):
            image_folder.decode(tmp_path / "x.npy", 4)


def test_folders_that_are_none(photos, monkeypatch):
    with pytest.raises(DataError, match="0 subfolders"):
        load("images", photos / "nowhere")
    monkeypatch.setenv("PERFSCOPE_DATA", str(photos))
    with pytest.raises(DataError, match="images is not an image folder"):
        load("images")
    (photos / "val" / "c").mkdir()
    with pytest.raises(DataError, match="training images lack"):
        load("images:32", photos)
    (photos / "val" / "c").rmdir()
    (photos / "train" / "c").mkdir()
    with pytest.raises(DataError, match="has no images"):
        load("images:32", photos)


def test_synthetic():
    data = synthetic("cifar10", 8, 4, seed=1)
    assert data.train_images.shape == (8, 3, 32, 32) and data.test_labels.shape == (4,) and "random" in data.split
    again = synthetic("cifar10", 8, 4, seed=1)
    assert torch.equal(data.train_images, again.train_images) and not torch.equal(data.train_images, synthetic("cifar10", 8, 4, seed=2).train_images)
    assert synthetic("images:16", 2, 1).train_images.shape == (2, 3, 16, 16) and synthetic("mnist", 2, 1).test_images.shape == (1, 1, 28, 28)
    with pytest.raises(UsageError, match="no data set"):
        synthetic("letters")
