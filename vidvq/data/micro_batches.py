"""Iteration over the items of a dataset, read ahead in worker processes, from any position."""

import gc
import os
import re
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Thread
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from vidvq.data.config import Batching
from vidvq.errors import WorkerLost

_LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (is killed by signal: (?P<signal>\w+)|exited)")
T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class UnreadableBatch:
    """A micro-batch that cannot be read. A value, because exceptions from data workers print a traceback.

    Attributes:
        error: exception to raise in the training process.
    """

    error: Exception


class MicroBatches(Protocol[T]):
    """A dataset of the micro-batches of one rank, indexed by ``(batch, micro_step)``."""

    seed: int
    ranks: int

    @property
    def config(self) -> Batching:
        """Settings of the workers and of the batches."""
        ...

    def __getitem__(self, position: tuple[int, int]) -> T | UnreadableBatch:
        """Return a micro-batch."""
        ...


def iter_micro_batches(dataset: MicroBatches[T], number: int, micro_step: int = 0) -> Iterator[T]:
    """Iterate over micro-batches without end, read ahead in worker processes.

    Args:
        micro_step: index of the first micro-batch in that batch.

    Raises:
        UsageError: no sample of a micro-batch can be read.
        WorkerLost: a worker process died.
        OSError: a disk does not respond.
        StoreError: an object store does not respond.
    """
    steps = dataset.config.accumulation(dataset.ranks)
    positions = (divmod(step, steps) for step in count(number * steps + micro_step))
    return read_ahead(dataset, positions, dataset.config.workers, dataset.seed)


def read_ahead(dataset: Any, positions: Iterable[Any], workers: int, seed: int) -> Iterator[Any]:
    """Iterate over ``dataset[position]``, read ahead in worker processes.

    Args:
        dataset: object whose items are values, or :class:`UnreadableBatch`.
        workers: number of processes; 0 reads in this process.
        seed: seed of the workers' random states.

    Raises:
        Exception: the error of an :class:`UnreadableBatch`.
        WorkerLost: a worker process died.
    """
    # Without a generator, the loader would draw its seed from the global random state, which resuming would change.
    loader: Any = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        sampler=positions,
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Torch takes seeds of 64 bits.
        generator=torch.Generator().manual_seed(seed % (1 << 64)),
    )
    # Decoded frames own threads of libswscale. If one were collected after the fork, the worker would wait for threads
    # that exist only in the parent.
    gc.collect()
    with reporting_lost_workers():
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except (EOFError, OSError) as error:
                if not workers:
                    raise
                # A worker returns what it cannot read as a value: this one died while it handed a batch over.
                raise _lost("exited") from error
            if isinstance(batch, UnreadableBatch):
                raise batch.error
            yield batch


@contextmanager
def reporting_lost_workers() -> Generator[None, None, None]:
    """Convert the error of the loader for a dead worker, which its signal handler raises anywhere in the main thread.

    Raises:
        WorkerLost: a worker process died.
    """
    try:
        yield
    except RuntimeError as error:
        if not (found := _LOST.search(str(error))):
            raise
        raise _lost(f"was killed ({found['signal']})" if found["signal"] else "exited") from error


def _lost(how: str) -> WorkerLost:
    return WorkerLost(
        f"a process that reads the data {how}, usually for want of memory; set data.batch_size or data.workers lower, "
        "and run the same command again to resume"
    )


def _start_worker(worker: int) -> None:
    gc.freeze()
    torch.set_num_threads(1)
    # Schedulers and torchrun send SIGTERM to the whole process group, but the run needs data to finish its step and
    # save. Workers exit only on a SIGTERM from their parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # A terminal sends Ctrl-C to the process group, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
