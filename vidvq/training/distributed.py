"""Distributed training: process group, collective operations and detection of lost ranks."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from vidvq.data.micro_batches import reporting_lost_workers
from vidvq.errors import WorkerLost

# Gloo prefixes the cause with its source location and appends advice.
_GLOO = re.compile(r"\[\S*gloo\S*\] (?P<cause>.*?)(\. |$)")


@dataclass(frozen=True)
class DistributedContext:
    """Rank and device of this process in a training job.

    Attributes:
        rank: global rank.
        size: number of processes (world size).
        device: device of this process.
    """

    rank: int
    size: int
    device: torch.device


def init_distributed(timeout_s: float) -> DistributedContext:
    """Join the process group described by RANK, WORLD_SIZE and MASTER_ADDR, or create one with a single process.

    A single process opens no socket: torch would look up the name of each connection, which takes 10 seconds where no
    name server answers.

    Args:
        timeout_s: time limit of a collective operation (seconds); a rank that exceeds it counts as lost.
    """
    single: dict[str, Any] = {}
    if "RANK" not in os.environ:
        # Required by DeepSpeed.
        os.environ["LOCAL_RANK"] = "0"
        store = distributed.HashStore()  # type: ignore[attr-defined]
        single = {"store": store, "rank": 0, "world_size": 1}
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s), **single)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return DistributedContext(distributed.get_rank(), distributed.get_world_size(), device)


def world_size() -> int:
    """Return the number of processes of this training job, which is known before they have joined."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


def shutdown_distributed() -> None:
    """Leave the process group. Collective: call on every rank."""
    distributed.destroy_process_group()


@contextmanager
def training_job(timeout_s: float) -> Iterator[DistributedContext]:
    """Join the process group of a training job, and leave it at the end.

    Args:
        timeout_s: time limit of a collective operation (seconds); a rank that exceeds it counts as lost.

    Yields:
        Context of this process.

    Raises:
        WorkerLost: another process of the job, or one that reads its data, was lost.
    """
    try:
        # Inside the block, because joining fails as well if a process has already left.
        with reporting_lost_workers():
            yield init_distributed(timeout_s)
    except RuntimeError as error:
        if cause := _peer_loss_cause(error):
            rank = os.environ.get("RANK", "0")
            message = f"process {rank} of {world_size()} lost contact with another process: {cause}"
            raise WorkerLost(f"{message}; restart the job to resume from its last checkpoint") from error
        raise
    finally:
        if distributed.is_initialized():
            shutdown_distributed()


def _peer_loss_cause(error: RuntimeError) -> str | None:
    """Return the cause of a collective operation that failed because a rank is lost; None for other errors."""
    found = _GLOO.search(str(error))
    if found:
        return found["cause"]
    return str(error).splitlines()[0] if isinstance(error, distributed.DistError) else None


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place. Collective: call on every rank."""
    if has_peers():
        distributed.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Average a tensor over all ranks, as fp32 without gradients. Collective: call on every rank."""
    return all_reduce_sum(tensor.detach().float().clone()) / world_size()


def to_host(tensor: Tensor) -> list[float]:
    """Copy a vector to the host, which waits for all work queued on the device."""
    return tensor.tolist()


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Gather tensors of one shape from all ranks, in rank order. Collective: call on every rank."""
    if not has_peers():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, tensor.contiguous())
    return gathered


def any_rank(flag: bool, context: DistributedContext) -> bool:
    """Return whether the flag is set on any rank. Collective: call on every rank."""
    return bool(all_reduce_sum(torch.tensor(float(flag), device=context.device)))


def barrier() -> None:
    """Wait for all ranks. Collective: call on every rank."""
    if has_peers():
        distributed.barrier()


def has_peers() -> bool:
    """Return whether other ranks exist."""
    return distributed.is_initialized() and distributed.get_world_size() > 1
