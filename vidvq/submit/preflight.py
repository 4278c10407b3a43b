"""Looks at every machine of a job before it starts: `python -m vidvq.submit.preflight`, on each of them.

Machine 0 listens where the job will meet, the others connect to it, and each says what it has. Machine 0 prints a table
and a verdict, and all of them exit with it: 0, or 2. On stdout each prints its own address and network interface, as
seen from the meeting place.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidvq import __version__
from vidvq.submit.route import interface_of

LIMIT_S = 60
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Found:
    """What a machine has.

    Attributes:
        rank: which machine it is.
        host: its name.
        vidvq: the version there.
        gpus: devices that torch can use.
        free_gib: disk space at the shared path.
        problem: why it cannot write there, or does not see what machine 0 wrote; None where all is well.
    """

    rank: int
    host: str
    vidvq: str
    gpus: int
    free_gib: float
    problem: str | None


def look(rank: int, shared: Path, nonce: str, gpus: int) -> Found:
    """Look at this machine.

    Args:
        rank: which machine it is.
        shared: must be writable here, and show what machine 0 wrote.
        nonce: what that is; machine 0 writes it.
        gpus: that are wanted; where none are, none are looked for.
    """
    folder = shared
    while not folder.is_dir():
        folder = folder.parent
    problem, free = None, 0.0
    try:
        free = shutil.disk_usage(folder).free / 2**30
        sign = folder / f".vidvq-preflight-{nonce}"
        if rank == 0:
            sign.touch()
        elif not sign.exists():
            problem = f"{folder} is not the one that machine 0 sees"
        mine = folder / f"{sign.name}-{rank}"
        mine.touch()
        mine.unlink()
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}"
    return Found(rank, socket.gethostname(), __version__, _count_gpus() if gpus else 0, round(free, 1), problem)


def judge(found: list[Found], nodes: int, gpus: int, min_free_gib: float) -> list[str]:
    """What is wrong with the machines, a line each."""
    here = {item.rank for item in found}
    wrong = [f"machine {rank} did not reach the meeting place" for rank in range(nodes) if rank not in here]
    for item in found:
        who = f"machine {item.rank} ({item.host})"
        if item.problem:
            wrong.append(f"{who}: {item.problem}")
        if item.gpus < gpus:
            wrong.append(f"{who} has {item.gpus} GPUs, {gpus} are wanted")
        if item.free_gib < min_free_gib:
            wrong.append(f"{who} has {item.free_gib} GiB free at the shared path, {min_free_gib:g} are wanted")
        if item.vidvq != found[0].vidvq:
            wrong.append(f"{who} has vidvq {item.vidvq}, machine {found[0].rank} has {found[0].vidvq}")
    return wrong


def table(found: list[Found]) -> list[str]:
    """One line per machine, under a heading."""
    rows = [("machine", "host", "vidvq", "GPUs", "free GiB", "shared path")]
    for item in sorted(found, key=lambda item: item.rank):
        shared = "wrong" if item.problem else "ok"
        rows.append((str(item.rank), item.host, item.vidvq, str(item.gpus), f"{item.free_gib:g}", shared))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def tell(found: list[Found], wrong: list[str]) -> int:
    """Print the table and the verdict; returns the exit code."""
    print(*table(found), *wrong, sep="\n", file=sys.stderr)
    print(f"preflight: {'not ready' if wrong else 'ready'}", file=sys.stderr, flush=True)
    return 2 if wrong else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", required=True, help="host:port where the job meets, on machine 0")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--min-free-gib", type=float, default=1.0)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    asked = parser.parse_args()
    host, _, port = asked.head.rpartition(":")
    deadline = time.monotonic() + asked.limit_s
    nonce = secrets.token_hex(8)
    if asked.rank:
        return _join(asked, (host, int(port)), deadline)
    found = [look(0, asked.shared.absolute(), nonce, asked.gpus)]
    others = _gather(host, int(port), asked.nodes - 1, nonce, deadline)
    found += [item for item, _ in others]
    wrong = judge(found, asked.nodes, asked.gpus, asked.min_free_gib)
    code = tell(found, wrong)
    for _, connection in others:
        _send(connection, {"wrong": wrong})
    for _, connection in others:
        # The other side closes first, so that the port is free for the job at once.
        connection.recv(1)
        connection.close()
    sweep(asked.shared.absolute(), nonce)
    address = socket.gethostbyname(host)
    print(address, interface_of(address))
    return code


def _gather(host: str, port: int, count: int, nonce: str, deadline: float) -> list[tuple[Found, socket.socket]]:
    found: dict[int, tuple[Found, socket.socket]] = {}
    if not count:
        return []
    try:
        server = socket.create_server((host, port), backlog=count)
    except OSError as error:
        raise SystemExit(f"preflight: machine 0 cannot listen at {host}:{port}: {error.strerror}") from error
    with server:
        while len(found) < count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
                connection.settimeout(max(deadline - time.monotonic(), 0.1))
                _send(connection, {"nonce": nonce})
                item = Found(**_receive(connection))
            except (OSError, ValueError, TypeError):
                # Too late, or a stranger: whoever is missing at the end is named.
                continue
            found[item.rank] = (item, connection)
    return [found[rank] for rank in sorted(found)]


def _join(asked: argparse.Namespace, head: tuple[str, int], deadline: float) -> int:
    name = f"machine {asked.rank} ({socket.gethostname()})"
    said = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(head, timeout=left)
        except OSError as error:
            # It may not listen yet.
            said = str(error)
            time.sleep(0.2)
            continue
        with connection:
            try:
                nonce = _receive(connection)["nonce"]
                mine = look(asked.rank, asked.shared.absolute(), nonce, asked.gpus)
                _send(connection, asdict(mine))
                wrong = _receive(connection)["wrong"]
            except (OSError, ValueError) as error:
                said = str(error)
                break
            address = connection.getsockname()[0]
        print(address, interface_of(address))
        return 2 if wrong else 0
    print(f"preflight: {name} cannot reach {asked.head}: {said}", file=sys.stderr)
    return 2


def _send(connection: socket.socket, value: Any) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


def _receive(connection: socket.socket) -> Any:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(4096)
        if not more or len(data) > _MOST_BYTES:
            raise ConnectionError("the connection ended in the middle")
        data += more
    return json.loads(data)


def sweep(shared: Path, nonce: str) -> None:
    """Remove what :func:`look` left at the shared path."""
    folder = shared
    while not folder.is_dir():
        folder = folder.parent
    for sign in folder.glob(f".vidvq-preflight-{nonce}*"):
        sign.unlink(missing_ok=True)


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
