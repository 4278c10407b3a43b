"""Joins a Ray cluster, or starts one on this machine, within a time limit. Any failure is a one-line error."""

# Ray's functions are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from math import ceil
from traceback import walk_tb
from types import FrameType
from typing import Any, NoReturn

import ray
from ray import _raylet
from ray._private import utils

from vidvq.errors import StoreError
from vidvq.log import info
from vidvq.runtime.interface import RuntimeConfig

# Ray's own limits add up to 13 minutes if an address accepts connections and never answers.
START_LIMIT_S = 120.0
# Ray itself gives up after 20 to 30 s, which parts of a start take on a busy machine.
_TRIES, _SLOW_START = 3, "timed out during startup"
_CONNECT_LIMIT_S = 10.0
_REPEAT_S = 5.0
# Client connection preface with an empty SETTINGS frame (RFC 9113, 3.4); a server answers with its own SETTINGS frame.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HTTP2_HEADER_BYTES, _HTTP2_SETTINGS = 9, 4
# Ray replaces 127.0.0.1 by the machine's external address, but keeps 127.0.0.2, which is loopback on Linux too.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"

# ray::RayLog::InstallFailureSignalHandler(char const*, bool)
_INSTALL = "_ZN3ray6RayLog27InstallFailureSignalHandlerEPKcb"


class _StartTimeout(BaseException):
    """Ray did not start in time. Not an Exception, because Ray catches those and retries."""


@contextmanager
def connect(config: RuntimeConfig) -> Generator[int, None, None]:
    """Join a Ray cluster or start a local one; it is shut down on exit.

    Yields:
        The number of workers to use.

    Raises:
        StoreError: Ray does not start, or the cluster cannot be reached.
    """
    if config.address:
        _join(config.address)
    else:
        _start_here(config.workers)
    # Ray reports dead workers on stdout until it is shut down; stdout is reserved for results.
    with redirect_stdout(sys.stderr):
        try:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            yield min(config.workers or cpus, cpus) if config.address else config.workers or cpus
        finally:
            ray.shutdown()


def count_cluster_gpus(address: str) -> float:
    """Join a Ray cluster and return the number of its GPUs. The process stays connected.

    Raises:
        StoreError: the cluster cannot be reached.
    """
    _join(address)
    return float(ray.cluster_resources().get("GPU", 0.0))


def count_slots(gpus: float) -> dict[str, int]:
    """Return the number of workers that fit each node of the cluster (0 or more), by node id.

    Args:
        gpus: GPUs of a worker; 0 for a worker that occupies a CPU.
    """
    name, each = ("GPU", gpus) if gpus else ("CPU", 1.0)
    # A fraction is a share of one GPU: the rest of each is left over.
    shared, whole = (int(1 / each), 1.0) if each < 1 else (1, each)
    return {
        node["NodeID"]: int(node["Resources"].get(name, 0) // whole) * shared for node in ray.nodes() if node["Alive"]
    }


def count_workers_here(config: RuntimeConfig, on_gpu: bool) -> int:
    """Return the number of workers of a job on this node (1 or more), if Ray spreads them evenly; for a worker."""
    slots = count_slots(config.gpus_per_worker if on_gpu else 0)
    own: float = slots.get(ray.get_runtime_context().get_node_id(), 0)
    if config.workers and (total := sum(slots.values())):
        own = min(own, config.workers * own / total)
    return max(ceil(own), 1)


def count_spare_cpus(config: RuntimeConfig, on_gpu: bool) -> int:
    """Return the CPUs of the cluster that the workers of a job do not occupy, for each of them; called in a worker.

    Args:
        on_gpu: whether the workers run on GPUs, and occupy no CPUs.
    """
    cpus = ray.cluster_resources().get("CPU", 0)
    slots = sum(count_slots(config.gpus_per_worker if on_gpu else 0).values())
    workers = min(config.workers or slots, slots)
    return int((cpus if on_gpu else cpus - workers) // max(workers, 1))


def _join(address: str) -> None:
    try:
        _check_reachable(address)
        # The preflight may have connected this process already. Disconnecting would make Ray delete the job's folder.
        _init(address=address, ignore_reinit_error=True)
    except (Exception, _StartTimeout) as error:
        raise StoreError(
            f"the Ray cluster at {address} cannot be reached: {_one_line(error)}; check that it is up, that it runs "
            f"Ray {ray.__version__} on Python {sys.version_info.major}.{sys.version_info.minor}, and that "
            "RAY_AUTH_TOKEN holds its token if it requires one"
        ) from error


def _start_here(workers: int | None) -> None:
    info("starting Ray, which takes a few seconds (runtime.workers=1 runs without it); progress is counted by shard")
    try:
        # Without the dashboard there is no job server, which would run any command it receives. Ray's other ports
        # still listen on every interface, and require its token.
        _init(_TRIES, address="local", num_cpus=workers, include_dashboard=False, _node_ip_address=_LOOPBACK)
    except (Exception, _StartTimeout) as error:
        logs = os.path.join(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "session_latest", "logs")  # noqa: PTH118
        raise StoreError(
            f"Ray does not start on this machine: {_one_line(error)}; its logs are in {logs}; set runtime.workers=0 to "
            "run without it"
        ) from error


def _init(tries: int = 1, **options: Any) -> None:
    for left in reversed(range(tries)):
        try:
            with _time_limit(START_LIMIT_S), _own_sigterm():
                # The exception says it in one line; Ray logs the reports of its processes.
                ray.init(logging_level=logging.CRITICAL, log_to_driver=False, **options)
        except Exception as error:
            if not left or _SLOW_START not in str(error):
                raise
            _end_processes(error)
        else:
            logging.getLogger("ray").setLevel(logging.ERROR)
            return


def _end_processes(error: Exception) -> None:
    """End the processes of a node that failed to start; only the frames of its constructor still refer to it."""
    for frame, _ in walk_tb(error.__traceback__):
        if end := getattr(frame.f_locals.get("self"), "kill_all_processes", None):
            end(check_alive=False, allow_graceful=False)


@contextmanager
def _own_sigterm() -> Generator[None, None, None]:
    """Keep this process's handler of SIGTERM while Ray starts, which replaces it twice in Python and once in C++."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    _install_failure_handlers()
    signal.signal(signal.SIGTERM, before)
    replace = utils.set_sigterm_handler
    utils.set_sigterm_handler = _ignore
    try:
        yield
    finally:
        utils.set_sigterm_handler = replace
        signal.signal(signal.SIGTERM, before)


def _ignore(_handler: Any) -> None:
    pass


def _install_failure_handlers() -> None:
    """Let Ray's library replace the handlers of fatal signals and of SIGTERM, which it does once per process.

    It would do so while it connects. Its handler prints a C++ stack and ends the process. Blocking SIGTERM meanwhile
    would not help: the signal then goes to another thread.
    """
    install = getattr(ctypes.CDLL(_raylet.__file__), _INSTALL, None)
    if install:
        call_previous_handler = ctypes.c_bool(True)
        install(None, call_previous_handler)


def _check_reachable(address: str) -> None:
    """Fail early if the address does not answer as Ray does; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    with socket.create_connection(
        (host.rpartition("//")[2].strip("[]"), int(port)), timeout=_CONNECT_LIMIT_S
    ) as server:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        server.sendall(_HTTP2_PREFACE)
        header = b""
        while len(header) < _HTTP2_HEADER_BYTES and (more := server.recv(_HTTP2_HEADER_BYTES - len(header))):
            header += more
        if len(header) < _HTTP2_HEADER_BYTES or header[3] != _HTTP2_SETTINGS:
            raise ConnectionError("another service than Ray listens there")


@contextmanager
def _time_limit(seconds: float) -> Generator[None, None, None]:
    """Raise after the given time. Signals reach the main thread only; in other threads Ray's own limits apply."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise _StartTimeout(f"it did not start within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    # Repeated, in case an exception handler in Ray swallows the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
