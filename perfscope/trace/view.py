"""Opens runs and traces in TensorBoard (its old PyTorch plugin and our own) or in Perfetto, on this machine only.

`look(path)` finds what there is to show, `tensorboard(...)` and `perfetto(...)` serve it on 127.0.0.1 until they are told
to stop. TensorBoard runs in a process group of its own and is ended as a whole: its old plugin starts one more per trace.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Iterator

from perfscope.errors import EnvironmentError_, UsageError
from perfscope.trace import tb

HOST = "127.0.0.1"
PERFETTO = "https://ui.perfetto.dev"
PERFETTO_PORT = 9001  # the one port that ui.perfetto.dev may fetch from: its content security policy names it
PATIENCE_S = 120.0  # until TensorBoard answers; it imports for 5 s on a quiet machine
KILL_AFTER_S = 10.0  # a child that was told to end and has not
MOST_FILES = 1000  # of one folder that are looked into
NEEDED = {"tensorboard": "tensorboard>=2.21", "torch_tb_profiler": "torch-tb-profiler==0.4.3", "pandas": "pandas"}
SUFFIX = re.compile(r"(\.pt)?(\.trace)?\.json(\.gz)?$")


@dataclass(frozen=True)
class Found:
    """What a path holds. `name` is the run's name in TensorBoard: the folder, from the path that was given."""

    traces: list[tuple[str, Path]] = field(default_factory=list)
    records: list[tuple[str, Path]] = field(default_factory=list)


def look(path) -> Found:
    """The traces and records (run.json) at a path: a trace file, a run.json, or a folder, searched to the bottom.

    Copies that perfscope made for the old plugin are left out where their original is there. UsageError if there is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no {path}", "Give a trace, a run, or a folder with some.")
    if path.is_file():
        if is_record(path):
            return Found(records=[(path.resolve().parent.name or "run", path)])
        if not tb.looks_like_trace(path):
            raise UsageError(
                f"{path} is neither a PyTorch trace nor a run.json",
                "A trace ends in .json or .json.gz; unpack a .tar first.",
            )
        return Found(traces=[(SUFFIX.sub("", path.name) or "trace", path)])
    found, copies = Found(), []
    for file in _files(path):
        name = str(file.parent.relative_to(path)) if file.parent != path else path.resolve().name or "run"
        if is_record(file):
            found.records.append((name, file))
        elif tb.looks_like_trace(file):
            mark = tb.mark_of(file)
            copies.append((name, file, mark["of"])) if mark else found.traces.append((name, file))
    originals = {f.resolve().parent / f.name for _, f in found.traces}
    found.traces.extend(
        (n, f) for n, f, of in copies if not {f.resolve().parent / of, f.resolve().parent.parent / of} & originals
    )
    if not found.traces and not found.records:
        raise UsageError(
            f"there is neither a PyTorch trace nor a run.json in {path}",
            "Record one: perfscope trace record --model resnet9",
        )
    return found


def _files(folder: Path) -> list[Path]:
    out = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        out += [Path(root) / n for n in sorted(names) if n.endswith((".json", ".json.gz")) and not n.startswith(".")]
        if len(out) > MOST_FILES:
            raise UsageError(f"{folder} holds more than {MOST_FILES} .json files", "Give the folder of one run.")
    return out


def is_record(path: Path) -> bool:
    """Whether a file is a run.json, by its first kilobyte: the schema is named there."""
    try:
        with open(path, "rb") as f:
            return b'"perfscope/run/' in f.read(1024)
    except OSError:
        return False


def log_directory(found: Found, folder: Path, say: Callable[[str], None] = lambda text: None) -> int:
    """Fills `folder` for TensorBoard: repaired copies for the old plugin, links to originals and records for ours.

    Returns the number of traces that could be repaired; raises UsageError if there were some, and none could.
    """
    repaired, trouble = 0, ""
    for i, (name, trace) in enumerate(found.traces):
        run = folder / name
        worker = SUFFIX.sub("", trace.name) or f"trace_{i}"
        worker = (
            worker if re.search(r"_\d+(\.\d+)?$", worker) else f"{worker}_0"
        )  # "<node>_<process>" in its distributed view
        target = run / f"{worker}.pt.trace.json.gz"
        run.mkdir(parents=True, exist_ok=True)
        if tb.mark_of(trace):
            _link(trace, target)
            repaired += 1
            continue
        _link(trace, run / (SUFFIX.sub("", trace.name) + ".trace.json" + (".gz" if tb.is_gzip(trace) else "")))
        try:
            lost = tb.repair(trace, target).damage
            repaired += 1
            if lost.events:
                say(f"{trace}: {lost.events} events could not be shown to the old plugin ({lost.why})")
        except UsageError as e:
            trouble = e.message
            say(e.message)
    for name, record in found.records:
        (folder / name).mkdir(parents=True, exist_ok=True)
        _link(record, folder / name / "run.json")
    if found.traces and not repaired and not found.records:
        raise UsageError(trouble)
    return repaired


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def missing_packages() -> list[str]:
    """The packages that `tensorboard` needs and that are not installed, as pip wants them."""
    return [pip for module, pip in NEEDED.items() if find_spec(module) is None]


@contextlib.contextmanager
def tensorboard(
    found: Found, port: int = 0, say: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """TensorBoard on `found`: (its URL, its process), once it answers; ended and cleaned up on the way out.

    port 0: a free one. EnvironmentError_ if a package is missing, the port is taken, or it does not start.
    """
    lacking = missing_packages()
    if lacking:
        raise EnvironmentError_(
            f"the view needs {', '.join(p.split('=')[0].rstrip('>') for p in lacking)}, which "
            f"{'is' if len(lacking) == 1 else 'are'} not installed",
            f"pip install {' '.join(repr(p) for p in lacking)}",
        )
    port = port or free_port()
    check_port(port)
    with tempfile.TemporaryDirectory(prefix="perfscope-view-", ignore_cleanup_errors=True) as scratch:
        logs = Path(scratch) / "logs"
        logs.mkdir()
        say(f"preparing {len(found.traces)} trace{'s' * (len(found.traces) != 1)} for TensorBoard")
        log_directory(found, logs, say)
        said = Path(scratch) / "tensorboard.log"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
            "TORCH_PROFILER_LOG_LEVEL": os.environ.get("TORCH_PROFILER_LOG_LEVEL", "ERROR"),
            "TMPDIR": scratch,
        }
        with open(said, "wb") as log:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "perfscope.tensorboard",
                    "--logdir",
                    str(logs),
                    "--host",
                    HOST,
                    "--port",
                    str(port),
                    "--load_fast",
                    "false",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            url = f"http://{HOST}:{port}/"
            _await(url, child, said)
            yield url, child
        finally:
            end(child)


def _await(url: str, child: subprocess.Popen, said: Path) -> None:
    begin = time.monotonic()
    while True:
        if child.poll() is not None:
            raise EnvironmentError_(
                f"TensorBoard stopped with exit code {child.returncode}",
                "Try: python -m tensorboard.main --version",
                said.read_text(errors="replace")[-2000:],
            )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
                return
        except (OSError, urllib.error.URLError):
            if time.monotonic() - begin > PATIENCE_S:
                raise EnvironmentError_(
                    f"TensorBoard did not answer within {PATIENCE_S:.0f} s",
                    "",
                    said.read_text(errors="replace")[-2000:],
                ) from None
            time.sleep(0.1)


def end(child: subprocess.Popen) -> None:
    """Ends a process and everything in its group; returns when they are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            pass
        begin = time.monotonic()
        while time.monotonic() - begin < KILL_AFTER_S:
            child.poll()
            try:
                os.killpg(child.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.05)
            if number == signal.SIGKILL and child.returncode is not None:
                return


def free_port() -> int:
    """A port of the loopback address that nobody uses now."""
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


def check_port(port: int) -> None:
    """EnvironmentError_ if something listens on the port already, UsageError if there is no such port."""
    if not 0 <= port < 65536:
        raise UsageError(f"there is no port {port}", "Ports are 1 to 65535; 0 takes a free one.")
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((HOST, port))
        except OSError as e:
            raise EnvironmentError_(
                f"port {port} cannot be used: {e.strerror or e}", "Give another with --port, or 0 for a free one."
            ) from None


@contextlib.contextmanager
def until_told() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that what was started is ended instead of left behind."""
    told = threading.Event()
    before = {n: signal.signal(n, lambda *_: told.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- Perfetto


class _Files(http.server.BaseHTTPRequestHandler):
    """Gives the known files to ui.perfetto.dev, and to nobody else: the origin and the host name are fixed."""

    protocol_version = "HTTP/1.1"

    def do_GET(self, body=True):
        path = self.server.files.get(urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/"))
        if path is None or self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            return self._answer(404, 0)
        try:
            file = open(path, "rb")
        except OSError:
            return self._answer(404, 0)
        with file:
            self._answer(200, os.fstat(file.fileno()).st_size)
            if body:
                with contextlib.suppress(ConnectionError):
                    shutil.copyfileobj(file, self.wfile)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_OPTIONS(self):
        self._answer(204, 0)

    def _answer(self, status: int, length: int) -> None:
        self.send_response(status)
        for name, value in (
            ("Access-Control-Allow-Origin", PERFETTO),
            ("Access-Control-Allow-Methods", "GET, HEAD"),
            ("Access-Control-Allow-Private-Network", "true"),
            ("Cache-Control", "no-cache"),
            ("Vary", "Origin"),
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", str(length)),
        ):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def perfetto(found: Found, port: int = 0) -> Iterator[list[str]]:
    """Serves the traces to ui.perfetto.dev while entered: one link for each. port 0: 9001, the one that it may read from."""
    if not found.traces:
        raise UsageError(
            "there is no trace to show in Perfetto",
            "A run.json has none: give a trace, or record one with perfscope trace record.",
        )
    check_port(port or PERFETTO_PORT)
    server = http.server.ThreadingHTTPServer((HOST, port or PERFETTO_PORT), _Files)
    server.daemon_threads = True
    server.files = {
        trace.name if len(found.traces) == 1 else f"{i}-{trace.name}": trace
        for i, (_, trace) in enumerate(found.traces)
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield [
            f"{PERFETTO}/#!/?url=http://{HOST}:{server.server_port}/{urllib.parse.quote(name)}" for name in server.files
        ]
    finally:
        server.shutdown()
        server.server_close()
