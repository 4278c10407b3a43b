"""Checks every node of a job before the job starts: run `python -m vidvq.submit.preflight` on each node.

Node 0 listens at the job's rendezvous; the others connect and report. Node 0 prints a table and the verdict to stderr,
and all nodes exit with it: 0 if ready, 2 if not. Each node prints its own address and network interface, as routed from
the rendezvous, to stdout.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidvq import __version__
from vidvq.storage import PREFLIGHT_MARKER
from vidvq.submit.network import interface_of

LIMIT_S = 60
_MOST_BYTES = 1 << 16
_STALE_S = 3600.0
_MIN_FREE_GIB = 1.0


@dataclass(frozen=True)
class NodeReport:
    """Result of the checks on one node.

    Attributes:
        rank: number of the node, from 0.
        vidvq: installed version of vidvq.
        gpus: GPUs visible to torch; 0 if none are required.
        free_gib: free space at the shared path (GiB).
        problem: why the shared path is unusable: not writable, or not the path that node 0 sees; None if it is usable.
    """

    rank: int
    host: str
    vidvq: str
    gpus: int
    free_gib: float
    problem: str | None


def probe_node(rank: int, shared: Path, nonce: str, gpus: int) -> NodeReport:
    """Check this node.

    Args:
        rank: number of the node, from 0.
        shared: path that must be writable here and hold the marker file of node 0.
        nonce: random suffix of the marker file, which node 0 creates.
        gpus: GPUs required per node; if 0, torch is not loaded to count them.
    """
    folder = _existing(shared)
    problem, free = None, 0.0
    try:
        free = shutil.disk_usage(folder).free / 2**30
        marker = folder / f"{PREFLIGHT_MARKER}{nonce}"
        if rank == 0:
            marker.touch()
        elif not marker.exists():
            problem = f"{folder} is not the folder that node 0 sees"
        own = folder / f"{marker.name}-{rank}"
        own.touch()
        own.unlink()
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}"
    return NodeReport(rank, socket.gethostname(), __version__, _count_gpus() if gpus else 0, round(free, 1), problem)


def find_problems(reports: list[NodeReport], nodes: int, gpus: int) -> list[str]:
    """Compare the nodes' reports with the requirements of a job.

    Args:
        reports: reports received, in rank order.
        gpus: GPUs required per node.

    Returns:
        One line per problem.
    """
    reached = {item.rank for item in reports}
    problems = [f"node {rank} did not reach the rendezvous" for rank in range(nodes) if rank not in reached]
    for item in reports:
        who = f"node {item.rank} ({item.host})"
        if item.problem:
            problems.append(f"{who}: {item.problem}")
        if item.gpus < gpus:
            problems.append(f"{who} has {item.gpus} GPUs; {gpus} are required")
        if item.free_gib < _MIN_FREE_GIB:
            problems.append(f"{who} has {item.free_gib} GiB free at the shared path; {_MIN_FREE_GIB:g} are required")
        if item.vidvq != reports[0].vidvq:
            problems.append(f"{who} has vidvq {item.vidvq}; node {reports[0].rank} has {reports[0].vidvq}")
    return problems


def format_table(reports: list[NodeReport]) -> list[str]:
    """Format the reports as a heading and one line per node."""
    rows = [("node", "host", "vidvq", "GPUs", "free GiB", "shared path")]
    for item in sorted(reports, key=lambda item: item.rank):
        shared = "unusable" if item.problem else "ok"
        rows.append((str(item.rank), item.host, item.vidvq, str(item.gpus), f"{item.free_gib:g}", shared))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def print_verdict(reports: list[NodeReport], problems: list[str]) -> int:
    """Print the table, the problems and the verdict to stderr; returns the exit code."""
    print(*format_table(reports), *problems, sep="\n", file=sys.stderr)
    print(f"preflight: {'not ready' if problems else 'ready'}", file=sys.stderr, flush=True)
    return 2 if problems else 0


def main() -> int:
    """Check this node as one of a job's nodes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", required=True, help="HOST:PORT of the rendezvous, on node 0")
    parser.add_argument("--nodes", type=int, required=True, help="number of nodes in the job")
    parser.add_argument("--rank", type=int, required=True, help="number of this node, from 0")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs required per node")
    parser.add_argument("--shared", type=Path, required=True, help="path that all nodes must be able to write")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="time limit (seconds)")
    arguments = parser.parse_args()
    host, _, port = arguments.head.rpartition(":")
    if not host or not port.isdecimal():
        parser.error(f"HEAD={arguments.head} must be HOST:PORT")
    deadline = time.monotonic() + arguments.limit_s
    nonce = secrets.token_hex(8)
    if arguments.rank:
        return _report_to_head(arguments, (host, int(port)), deadline)
    reports = [probe_node(0, arguments.shared.absolute(), nonce, arguments.gpus)]
    others = _collect_reports(host, int(port), arguments.nodes - 1, nonce, deadline)
    reports += [item for item, _ in others]
    problems = find_problems(reports, arguments.nodes, arguments.gpus)
    code = print_verdict(reports, problems)
    for _, connection in others:
        # A peer that has died since is noticed by what started it.
        with connection, suppress(OSError):
            _send(connection, {"problems": problems})
            # The peer closes first, so that no socket of node 0 stays in TIME_WAIT and the job can bind the port.
            connection.recv(1)
    remove_markers(arguments.shared.absolute(), nonce)
    address = socket.gethostbyname(host)
    print(address, interface_of(address))
    return code


def _collect_reports(
    host: str, port: int, count: int, nonce: str, deadline: float
) -> list[tuple[NodeReport, socket.socket]]:
    reports: dict[int, tuple[NodeReport, socket.socket]] = {}
    if not count:
        return []
    try:
        server = socket.create_server((host, port), backlog=count)
    except OSError as error:
        raise SystemExit(f"preflight: node 0 cannot listen at {host}:{port}: {error.strerror}") from error
    with server:
        while len(reports) < count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
                connection.settimeout(max(deadline - time.monotonic(), 0.1))
                _send(connection, {"nonce": nonce})
                item = NodeReport(**_receive(connection))
            except (OSError, ValueError, TypeError):
                # Too late, or not one of the job's nodes: the nodes that are missing at the end are reported.
                continue
            reports[item.rank] = (item, connection)
    return [reports[rank] for rank in sorted(reports)]


def _report_to_head(arguments: argparse.Namespace, head: tuple[str, int], deadline: float) -> int:
    name = f"node {arguments.rank} ({socket.gethostname()})"
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(head, timeout=left)
        except OSError as error:
            # Node 0 may not listen yet.
            reason = str(error)
            time.sleep(0.2)
            continue
        with connection:
            try:
                nonce = _receive(connection)["nonce"]
                own = probe_node(arguments.rank, arguments.shared.absolute(), nonce, arguments.gpus)
                _send(connection, asdict(own))
                problems = _receive(connection)["problems"]
            except (OSError, ValueError) as error:
                reason = str(error)
                break
            address = connection.getsockname()[0]
        print(address, interface_of(address))
        return 2 if problems else 0
    print(f"preflight: {name} cannot reach {arguments.head}: {reason}", file=sys.stderr)
    return 2


def _send(connection: socket.socket, value: Any) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


def _receive(connection: socket.socket) -> Any:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(4096)
        if not more or len(data) > _MOST_BYTES:
            raise ConnectionError("the connection was closed in mid-message")
        data += more
    return json.loads(data)


def remove_markers(shared: Path, nonce: str) -> None:
    """Remove the marker files of :func:`probe_node` from the shared path."""
    for marker in _existing(shared).glob(f"{PREFLIGHT_MARKER}*"):
        with suppress(OSError):
            # Markers of others are removed too, where their job was killed long ago.
            if marker.name.startswith(f"{PREFLIGHT_MARKER}{nonce}") or time.time() - marker.stat().st_mtime > _STALE_S:
                marker.unlink()


def _existing(path: Path) -> Path:
    """Return the folder at an absolute path, or the nearest one above it."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
