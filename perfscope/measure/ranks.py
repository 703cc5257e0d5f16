"""Several ranks under torchrun, on torch.distributed: joins them, lets them agree, gathers what each measured."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

from perfscope.errors import EnvironmentError_

PATIENCE = datetime.timedelta(minutes=3)    # a collective that takes longer means that a rank is gone
LOST = "another rank stopped answering: it died, or lost its connection"


@dataclass(frozen=True)
class Ranks:
    """This process among the others; a world of one needs no torch.distributed at all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist
        box = [value]
        _collective(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist
        values = [None] * self.size
        _collective(lambda: dist.all_gather_object(values, value))
        return values


def _collective(call) -> None:
    try:
        call()
    except RuntimeError as e:
        raise lost(e) from None


def lost(error: Exception) -> EnvironmentError_:
    """What to say when a collective failed because another rank is gone."""
    return EnvironmentError_(LOST, "If that rank said nothing itself, it was killed: look at the memory of its machine.",
                             (str(error).splitlines() or [""])[0][:300])


def is_lost(error: BaseException) -> bool:
    """Whether an error is what a collective raises when another rank is gone."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport",
                                  "NCCL communicator was aborted", "Timed out waiting", "Socket Timeout"))


def join(device_type: str) -> Ranks:
    """The ranks that torchrun started, joined over NCCL (GPUs) or gloo (CPUs); a world of one without torchrun."""
    size = world()[1]
    if size == 1:
        return Ranks()
    import torch
    import torch.distributed as dist
    local = _number("LOCAL_RANK", 0)
    if device_type == "cuda":
        if local >= torch.cuda.device_count():
            raise EnvironmentError_(f"rank {local} has no GPU: this machine has {torch.cuda.device_count()}",
                                    "Start no more ranks per machine than it has GPUs (--nproc-per-node).")
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as e:
            raise EnvironmentError_(f"the {size} ranks could not be joined: {(str(e).splitlines() or [''])[0][:300]}",
                                    "Start them with torchrun, which sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.") from None
    return Ranks(dist.get_rank(), dist.get_world_size(), local)


def leave() -> None:
    """Leaves the group, if there is one."""
    if world()[1] > 1:
        import torch.distributed as dist
        if dist.is_initialized():
            dist.destroy_process_group()


def world() -> tuple[int, int]:
    """(rank, size) as torchrun says, without joining; (0, 1) without torchrun."""
    return _number("RANK", 0), _number("WORLD_SIZE", 1)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    try:
        return int(text)
    except ValueError:
        raise EnvironmentError_(f"the environment variable {variable} is {text!r}, not a number",
                                f"torchrun sets it; without torchrun: unset {variable}") from None
