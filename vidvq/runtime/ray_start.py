"""Joins a Ray cluster, or starts one on this machine, within a time limit; whatever goes wrong is one line."""

# Ray's functions are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, NoReturn

import ray

from vidvq.errors import StoreError
from vidvq.runtime.interface import RuntimeConfig

# Ray's own limits add up to 13 minutes where an address accepts connections and never answers.
START_LIMIT_S = 120.0
_KNOCK_LIMIT_S = 10.0
_AGAIN_S = 5.0
# What an HTTP/2 client says first (RFC 9113, 3.4), with no settings; a server answers with a frame of its settings.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HTTP2_HEADER_BYTES, _HTTP2_SETTINGS = 9, 4
# Ray replaces 127.0.0.1 by the machine's outward address, but not this one, which is loopback too on Linux.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


class _TooLate(BaseException):
    """Ray has not started in time. Not an Exception, since Ray retries after those."""


@contextmanager
def connect(config: RuntimeConfig) -> Generator[int, None, None]:
    """Join a Ray cluster or start a local one; yields how many workers to use.

    Raises:
        StoreError: Ray does not start, or the cluster cannot be reached.
    """
    if config.address:
        _join(config.address)
    else:
        _start_here(config.workers)
    # Ray prints the deaths of workers to stdout, until its end, and stdout is for results alone.
    with redirect_stdout(sys.stderr):
        try:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            yield min(config.workers or cpus, cpus) if config.address else config.workers or cpus
        finally:
            ray.shutdown()


def _join(address: str) -> None:
    try:
        _knock(address)
        # The preflight of a cluster has connected already: if it disconnected, Ray would drop the folder of the job.
        _init(address=address, ignore_reinit_error=True)
    except (Exception, _TooLate) as error:
        raise StoreError(
            f"the Ray cluster at {address} cannot be reached: {_line(error)}; check that it is up, that it runs Ray "
            f"{ray.__version__} on Python {sys.version_info.major}.{sys.version_info.minor}, and that RAY_AUTH_TOKEN "
            "is its token where it asks for one"
        ) from error


def _start_here(workers: int | None) -> None:
    try:
        # Without a dashboard there is no job interface that would run what it is sent. Ray opens its other ports on
        # every interface all the same, and asks for its token there.
        _init(address="local", num_cpus=workers, include_dashboard=False, _node_ip_address=_LOOPBACK)
    except (Exception, _TooLate) as error:
        logs = os.path.join(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "session_latest", "logs")  # noqa: PTH118
        raise StoreError(
            f"Ray does not start on this machine: {_line(error)}; its logs are in {logs}; give runtime.workers=0 to "
            "run without it"
        ) from error


def _init(**options: Any) -> None:
    with _time_limit(START_LIMIT_S):
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)


def _knock(address: str) -> None:
    """Fail soon where no Ray listens, or one that hangs; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    with socket.create_connection((host.rpartition("//")[2].strip("[]"), int(port)), timeout=_KNOCK_LIMIT_S) as server:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        server.sendall(_HTTP2_HELLO)
        header = b""
        while len(header) < _HTTP2_HEADER_BYTES and (more := server.recv(_HTTP2_HEADER_BYTES - len(header))):
            header += more
        if len(header) < _HTTP2_HEADER_BYTES or header[3] != _HTTP2_SETTINGS:
            raise ConnectionError("what listens there is not Ray")


@contextmanager
def _time_limit(seconds: float) -> Generator[None, None, None]:
    """Raise in the main thread when the time is up; elsewhere there is no limit but Ray's own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise _TooLate(f"it has not started within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again, should a handler in Ray swallow the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
