"""One file from its official place: resumed where it was interrupted, verified before it gets its name.

The bytes go to `<name>.<digest>.part` beside the target. A dropped connection is taken up again with an HTTP Range
request; so is a download that an earlier command was interrupted in. Only a file with the right checksum is renamed.
pooch, which does downloads with checksums, always starts from the beginning (its HTTPDownloader opens the file "w+b"
and sends no Range), so this is a loop over urllib. It speaks HTTP(S) to whatever proxies the environment names.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from perfscope.errors import DataError, EnvironmentError_

CHUNK = 1 << 18             # bytes read at a time
REPORT = 1 << 21            # bytes between two words of progress
TRIES = 3                   # connections in a row that brought nothing before it is given up
PAUSE_S = 1.0               # before the second of them, twice as long before the third, ...
TIMEOUT_S = 30.0            # without a byte
LOCK = ".perfscope-download.lock"


@dataclass(frozen=True)
class Remote:
    """A file at its official place: `size` in bytes, `md5` as the place publishes it."""

    url: str
    size: int
    md5: str

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rsplit("/", 1)[-1]


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file, read in pieces. MD5 and SHA-1 are what the official places publish."""
    sums = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            sums.update(piece)
    return sums.hexdigest()


def fetch(remote: Remote, folder: Path, stage: Callable[[str], None] = lambda text: None) -> Path:
    """The verified file in `folder`, which is made; downloaded unless it is there already, with progress to `stage`.

    Raises EnvironmentError_ if the place cannot be reached or the disk is too small (what has come stays, to be
    resumed), DataError if what it sends is not the official file (nothing stays).
    """
    target, part = folder / remote.name, folder / f"{remote.name}.{remote.md5[:8]}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if target.exists() and digest(target, "md5") == remote.md5:
                return target
            _room(folder, remote.size - (part.stat().st_size if part.exists() else 0))
            for _ in range(2 if part.exists() else 1):      # a beginning of something else: once more, from zero
                _complete(remote, part, stage)
                if digest(part, "md5") == remote.md5:
                    os.replace(part, target)
                    return target
                part.unlink()
    except OSError as error:
        raise EnvironmentError_(f"{remote.name} cannot be written to {folder}: {error.strerror or error}",
                                "Choose another folder with --data, or free some space.") from None
    raise DataError(f"what {remote.url} sent is not the official {remote.name}: its MD5 is another than {remote.md5}",
                    f"Nothing of it was kept. Get the file elsewhere and put it into {folder}.")


def _complete(remote: Remote, part: Path, stage: Callable[[str], None]) -> None:
    """Goes on until `part` has all bytes of the remote file; gives up after TRIES connections that brought nothing new."""
    have = most = part.stat().st_size if part.exists() else 0
    idle, why = 0, "the connection ended early"
    while have < remote.size and idle < TRIES:
        time.sleep(PAUSE_S * idle)
        try:
            _receive(remote, part, have, stage)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            code = getattr(error, "code", None)
            why = f"HTTP status {code}" if code else str(getattr(error, "reason", error) or type(error).__name__)
            if code == 416:                         # there is nothing after what we have, so it was no part of it
                part.unlink(missing_ok=True)
            elif code is not None and code < 500:
                break                               # refused: asking again does not help
        have = part.stat().st_size if part.exists() else 0
        idle, most = (0, have) if have > most else (idle + 1, most)
    if have < remote.size:
        raise EnvironmentError_(f"{remote.url} could not be downloaded: {why} "
                                f"({have / 1e6:.1f} of {remote.size / 1e6:.1f} MB are here)",
                                "Run the same command again to resume, or put the file into a folder and say --data FOLDER.")


def _receive(remote: Remote, part: Path, have: int, stage: Callable[[str], None]) -> None:
    """One connection: appends to `part` from byte `have` on, or begins anew where the server cannot continue."""
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        span = answer.headers.get("Content-Range", "") if answer.status == 206 else ""
        whole = span.rpartition("/")[2] or answer.headers.get("Content-Length", "")
        if whole.isdigit() and int(whole) != remote.size:
            raise DataError(f"{remote.url} offers {whole} bytes, the official file has {remote.size}",
                            "A proxy or log-in page may have answered. Get the file elsewhere and say --data FOLDER.")
        continues = span.startswith(f"bytes {have}-")
        if span and not continues:                  # another piece than was asked for
            part.unlink(missing_ok=True)
            return
        have, told = have if continues else 0, 0
        with open(part, "ab" if continues else "wb") as file:
            while have <= remote.size and (piece := answer.read(CHUNK)):
                file.write(piece)
                have += len(piece)
                if have - told >= REPORT or have == remote.size:
                    stage(f"downloading {remote.name}: {have / 1e6:.1f} of {remote.size / 1e6:.1f} MB")
                    told = have


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentError_(f"{needed / 1e6:.0f} MB are needed in {folder}, {free / 1e6:.0f} MB are free",
                                "Choose another folder with --data, or free some space.")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time downloads a file: the ranks of one run wait for the first of them. POSIX only."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / LOCK, "w") as file:          # it stays: a file that is taken away under a waiting process locks nothing
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
