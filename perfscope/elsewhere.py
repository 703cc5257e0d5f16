"""Runs a module of perfscope in a process of its own, with a JSON request in and a JSON answer out (METHOD 13).

    answer = elsewhere.ask("perfscope.turns", request, "timing the versions")
    with elsewhere.started("perfscope.diagnose", "perfscope.turns") as (first, second):     # both import torch at the same time,
        seen = first.ask(...)                                                               # and then each waits for its turn
        turns = second.ask(...)

The module has `answer(request) -> dict` and ends in `if __name__ == "__main__": elsewhere.serve(answer)`.
Importing is most of what a short process does (torch and torch._dynamo: 3 s), so processes that will be needed one after the
other are started together. Nothing is asked before all of them are idle: no import runs beside a measurement.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator

from perfscope.errors import EXIT_ENVIRONMENT, EnvironmentError_, PerfscopeError, WorkloadError

#: What torchrun sets: a process of its own is no rank.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
READY = b"perfscope: ready\n"
PATIENCE_S = 10.0           # that a child gets after Ctrl-C to write down what it has


def environment() -> dict[str, str]:
    """This process's environment for a child: perfscope importable, no rank."""
    env = {k: v for k, v in os.environ.items() if k not in RANKS}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    return env


class Process:
    """A child that imports its module and then waits for one request."""

    def __init__(self, module: str, folder: Path, group: list[Process]):
        self.out, self.said, self.group, self.waited = folder / "answer.json", folder / "said.txt", group, False
        with open(self.said, "wb") as said:
            self.child = subprocess.Popen([sys.executable, "-m", module, str(self.out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                          stderr=said, env=environment())

    def wait(self) -> None:
        """Until it has imported all it needs, or is dead."""
        if not self.waited:
            while self.child.stdout.readline() not in (READY, b""):
                pass
            self.waited = True

    def ask(self, request: dict, what: str) -> dict[str, Any]:
        """Its answer, once all that were started with it are idle or done. `what`: what it does, for the error.

        Raises the child's own PerfscopeError, or WorkloadError with its last words; KeyboardInterrupt with the answer that
        the child still gave, if any, as its `answer`.
        """
        try:
            for process in self.group:
                process.wait()
            with contextlib.suppress(BrokenPipeError):
                self.child.communicate(json.dumps(request).encode())
        except KeyboardInterrupt as e:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(PATIENCE_S)
            e.answer = _read(self.out)
            raise
        answer = _read(self.out)
        if answer is None:
            said = self.said.read_text(errors="replace")
            raise WorkloadError(f"{what} in a process of its own failed (exit {self.child.returncode})", "", said[-4000:])
        if "error" in answer and set(answer) == {"error"}:
            raise _raised(answer["error"])
        return answer

    def stop(self) -> None:
        """Ends it, whatever it does."""
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


@contextlib.contextmanager
def started(*modules: str) -> Iterator[list[Process]]:
    """A process for each module, all importing side by side; what is still running at the end is ended."""
    group: list[Process] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for i, module in enumerate(modules):
                own = Path(folder) / str(i)
                own.mkdir()
                group.append(Process(module, own, group))
            yield list(group)
        finally:
            for process in group:
                process.stop()


def ask(module: str, request: dict, what: str) -> dict[str, Any]:
    """The answer of one process that is started for it: see Process.ask."""
    with started(module) as (process,):
        return process.ask(request, what)


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _raised(error: dict) -> PerfscopeError:
    kind = EnvironmentError_ if error["exit_code"] == EXIT_ENVIRONMENT else WorkloadError
    return kind(error["message"], error["hint"], error["detail"])


def serve(answer: Callable[[dict], dict]) -> None:
    """What a child does: says that it is ready, reads the request, writes the answer, or the PerfscopeError that it raised."""
    import torch._dynamo  # noqa: F401  the first optimizer would import it: now, and not in the middle of the work

    from perfscope.record import to_dict

    sys.stdout.flush()
    os.write(1, READY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        text = sys.stdin.read()
    except KeyboardInterrupt:
        return
    if not text:
        return                                  # nobody wants anything any more
    try:
        given = to_dict(answer(json.loads(text)))
    except PerfscopeError as e:
        given = {"error": {"message": e.message, "hint": e.hint, "detail": e.detail, "exit_code": e.exit_code}}
    Path(sys.argv[1]).write_text(json.dumps(given), encoding="utf-8")
