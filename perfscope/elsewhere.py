"""Runs a module of perfscope in a process of its own, with a JSON request in and a JSON answer out (METHOD 13).

The module has `answer(request) -> dict` and ends in `if __name__ == "__main__": elsewhere.serve(answer)`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

from perfscope.errors import EXIT_ENVIRONMENT, EnvironmentError_, PerfscopeError, WorkloadError

#: What torchrun sets: a process of its own is no rank.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
PATIENCE_S = 10.0           # that a child gets after Ctrl-C to write down what it has


def environment() -> dict[str, str]:
    """This process's environment for a child: perfscope importable, no rank."""
    env = {k: v for k, v in os.environ.items() if k not in RANKS}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    return env


def ask(module: str, request: dict, what: str) -> dict[str, Any]:
    """The answer of `python -m module` to a request. `what`: what it does, for the error.

    Raises the child's own PerfscopeError, or WorkloadError with its last words; KeyboardInterrupt with the answer that the
    child still gave, if any, as its `answer`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        child = subprocess.Popen([sys.executable, "-m", module, str(out)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True, env=environment())
        try:
            _, said = child.communicate(json.dumps(request))
        except KeyboardInterrupt as e:
            try:
                child.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
            e.answer = _read(out)
            raise
        answer = _read(out)
        if answer is None:
            raise WorkloadError(f"{what} in a process of its own failed (exit {child.returncode})", "", said[-4000:])
        if "error" in answer and set(answer) == {"error"}:
            raise _raised(answer["error"])
        return answer


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _raised(error: dict) -> PerfscopeError:
    kind = EnvironmentError_ if error["exit_code"] == EXIT_ENVIRONMENT else WorkloadError
    return kind(error["message"], error["hint"], error["detail"])


def serve(answer: Callable[[dict], dict]) -> None:
    """What a child does: reads the request, writes the answer, or the PerfscopeError that it raised."""
    from perfscope.record import to_dict

    request = json.load(sys.stdin)
    try:
        given = to_dict(answer(request))
    except PerfscopeError as e:
        given = {"error": {"message": e.message, "hint": e.hint, "detail": e.detail, "exit_code": e.exit_code}}
    Path(sys.argv[1]).write_text(json.dumps(given), encoding="utf-8")
