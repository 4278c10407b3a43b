"""A Slurm cluster on this machine: munged, slurmctld and two slurmd. Needs root, slurm-wlm and munge."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NODES = ("n1", "n2")


def why_not() -> str | None:
    """Why this machine cannot run a Slurm cluster; None if it can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    return "a Slurm of its own needs root" if os.geteuid() else None


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster with its files in ``folder``, whose path must be short; yields the environment of its clients."""
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    spool = folder / "state"
    spool.mkdir()
    ports = [_free_port() for _ in range(3)]
    nodes = [
        f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    (folder / "slurm.conf").write_text(
        "\n".join(
            [
                "ClusterName=vidvq",
                f"SlurmctldHost={socket.gethostname()}(127.0.0.1)",
                f"SlurmctldPort={ports[0]}",
                "SlurmUser=root",
                "AuthType=auth/munge",
                "CredType=cred/munge",
                # A requeued job waits for this time (seconds) before it starts again.
                f"AuthInfo=socket={folder}/munge.sock,cred_expire=5",
                "ProctrackType=proctrack/pgid",
                "TaskPlugin=task/none",
                "SelectType=select/cons_tres",
                "SelectTypeParameters=CR_CPU",
                "SchedulerType=sched/builtin",
                "SchedulerParameters=batch_sched_delay=0,sched_interval=1",
                "MpiDefault=none",
                "ReturnToService=2",
                "KillWait=5",
                f"StateSaveLocation={spool}",
                f"SlurmdSpoolDir={folder}/%n",
                f"SlurmctldPidFile={folder}/ctld.pid",
                f"SlurmdPidFile={folder}/%n.pid",
                f"SlurmctldLogFile={folder}/ctld.log",
                f"SlurmdLogFile={folder}/%n.log",
                *nodes,
                "PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO",
                "",
            ]
        )
    )
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munged = [
        *["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock"],
        *[f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"],
    ]
    with ExitStack() as stack:
        for command in (munged, ["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", name] for name in NODES)):
            stack.enter_context(_running(command, environment, folder))
        _wait_until_idle(environment, folder)
        yield environment


@contextmanager
def _running(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / "daemons.log").open("ab") as log:
        daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        shown = subprocess.run(
            ["sinfo", "-h", "-o", "%T|%D"], env=environment, capture_output=True, text=True, check=False
        )
        if shown.stdout.strip() == "idle|2":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in folder.glob("*.log"))
    raise AssertionError(f"Slurm did not come up: {shown.stdout} {shown.stderr}\n{logs}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
