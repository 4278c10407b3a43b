"""The verb `submit`: jobs on clusters, and how they stand."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidvq import config, log
from vidvq.cli.arguments import config_option, config_path, out_option, split
from vidvq.cli.place import checkpoint_option
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import BUNDLED

if TYPE_CHECKING:
    from vidvq.submit import Job

_RUN = click.argument("run", type=click.Path(path_type=Path))


@click.group(short_help="Run train, shard or tokenize on a cluster.")
def submit() -> None:
    """Run train, shard or tokenize on a cluster, and see how it stands.

    Everything about a job is kept in its run folder, by default runs/jobs/NAME. The same command again does no harm:
    what is there already stays as it is, what failed or was cancelled goes on.

    \b
    vidvq submit train demo data.clips=shards/ out=runs/big --backend slurm --nodes 2 --gpus 8
    vidvq submit status RUN; vidvq submit logs -f RUN; vidvq submit cancel RUN
    """


def _where(function: Callable[..., int]) -> Callable[..., int]:
    """The options that say where a job runs."""
    for option in reversed(
        (
            click.option("--backend", default="local", show_default=True, help="local, slurm, ssh, ray or kubernetes."),
            click.option("--nodes", type=int, help="Machines; 1, or all of the hostfile."),
            click.option("--gpus", default=0, show_default=True, help="GPUs of each machine."),
            click.option("--cpus", type=int, help="CPU cores of each machine."),
            click.option("--time", metavar="H:MM:SS", help="Limit of one stretch; training goes on in the next."),
            click.option("--array", type=int, metavar="N", help="Slurm: N such jobs that share the corpus."),
            click.option("--queue", help="Slurm's partition, or Kueue's queue."),
            click.option("--address", metavar="URL", help="Ray: the cluster's job interface, http://HOST:8265."),
            click.option("--hostfile", metavar="FILE", help="ssh: lines of `HOST slots=8`."),
            click.option("--image", help="Kubernetes: the container image."),
            click.option("--namespace", help="Kubernetes: the namespace."),
            click.option("--volume", "volumes", multiple=True, metavar="CLAIM:/PATH", help="Kubernetes: shared disk."),
            click.option("--secret", "secrets", multiple=True, help="Kubernetes: a secret's name, for variables."),
            click.option("--retries", default=0, show_default=True, help="With --wait: attempts after a failed one."),
            click.option("--wait", is_flag=True, help="Stay until it has ended; exit 1 where it failed."),
            click.option("--dry-run", is_flag=True, help="Print exactly what would run; write and submit nothing."),
            click.option("--run", "run_folder", type=click.Path(path_type=Path), help="The run folder."),
        )
    ):
        function = option(function)
    return function


@submit.command(short_help="Train a tokenizer there.")
@click.argument("config_name", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_where
def train(config_name: str, overrides: tuple[str, ...], **where: Any) -> int:
    """Train a tokenizer as `vidvq train CONFIG [KEY=VALUE]...` would, with GPUs x nodes processes."""
    from vidvq.train import TrainConfig

    loaded = config.load(TrainConfig, config.find_config(config_name), list(overrides))
    settings = config.to_dict(loaded)
    settings["out"] = _absolute(settings["out"])
    clips = settings["data"]["clips"]
    settings["data"]["clips"] = (
        {_absolute(folder): weight for folder, weight in clips.items()}
        if isinstance(clips, dict)
        else [_absolute(folder) for folder in clips]
    )
    perceptual = settings["loss"]["perceptual_net"]
    for section, name in ((settings, "start_from"), (settings["evaluation"], "clips"), (perceptual, "backbone")):
        section[name] = section[name] and _absolute(section[name])
    job = _job("train", (), settings, settings["out"], where)
    loaded.data.micro_batch(job.resources.nodes * job.processes)
    return _submit(job, where)


@submit.command(short_help="Cut videos into clip shards there.")
@click.argument("videos", nargs=-1, metavar="[VIDEOS]... [KEY=VALUE]...")
@out_option
@config_option
@_where
def shard(videos: tuple[str, ...], out: Path, config_name: str | None, **where: Any) -> int:
    """Cut VIDEOS into clip shards as `vidvq shard` would, on a Ray cluster of its own."""
    from vidvq.shard import ShardConfig

    inputs, overrides = split(videos)
    if not inputs:
        raise UsageError("give video files or directories")
    settings = config.to_dict(config.load(ShardConfig, config_path(config_name), overrides))
    target = _absolute(str(out))
    return _submit(_job("shard", (*map(_absolute, inputs), "--out", target), settings, target, where), where)


@submit.command(short_help="Turn clip shards or videos into token shards there.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCES... [KEY=VALUE]...")
@checkpoint_option
@out_option
@config_option
@_where
def tokenize(sources: tuple[str, ...], checkpoint: Path, out: Path, config_name: str | None, **where: Any) -> int:
    """Turn SOURCES into token shards as `vidvq tokenize` would, on a Ray cluster of its own."""
    from vidvq.tokenize import TokenizeConfig

    inputs, overrides = split(sources)
    if not inputs:
        raise UsageError("give a directory of clip shards, or video files or directories")
    settings = config.to_dict(config.load(TokenizeConfig, config_path(config_name), overrides))
    target = _absolute(str(out))
    # What ships with vidvq lies wherever vidvq lies on those machines.
    weights = () if checkpoint == BUNDLED else ("--checkpoint", _absolute(str(checkpoint)))
    arguments = (*map(_absolute, inputs), *weights, "--out", target)
    return _submit(_job("tokenize", arguments, settings, target, where), where)


@submit.command(short_help="Say how a job stands.")
@_RUN
def status(run: Path) -> int:
    """Say how the job of a run folder stands: waiting, running, done, failed, cancelled or lost."""
    from vidvq import submit as jobs

    click.echo(jobs.status(run))
    return 0


@submit.command(short_help="Print a job's output.")
@_RUN
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
def logs(run: Path, follow: bool) -> int:
    """Print the output of a run folder's job."""
    from vidvq import submit as jobs

    for data in jobs.follow(run, keep_on=follow):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0


@submit.command(short_help="Stop a job; training saves first.")
@_RUN
def cancel(run: Path) -> int:
    """Ask the job of a run folder to stop. Training saves a checkpoint first; submit it again to go on."""
    from vidvq import submit as jobs

    before = jobs.cancel(run)
    log.info(f"{run} had ended before: {before}" if before.ended else f"{run} is asked to stop; it was {before}")
    return 0


def _job(verb: str, arguments: tuple[str, ...], settings: dict[str, Any], out: str, where: dict[str, Any]) -> "Job":
    from vidvq import submit as jobs

    names = ("gpus", "cpus", "time", "array", "queue", "image", "namespace", "volumes", "secrets", "address")
    hostfile = _absolute(where["hostfile"]) if where["hostfile"] else None
    nodes = where["nodes"]
    if nodes is None:
        nodes = len(jobs.read_hostfile(Path(hostfile))) if hostfile else 1
    resources = jobs.Resources(nodes=nodes, hostfile=hostfile, **{name: where[name] for name in names})
    return jobs.Job(verb, arguments, settings, out, where["backend"], resources, os.getcwd(), sys.executable)  # noqa: PTH109


def _submit(job: "Job", where: dict[str, Any]) -> int:
    from vidvq import submit as jobs

    run = where["run_folder"] or Path("runs/jobs", job.name)
    if where["dry_run"]:
        for line in jobs.preview(job, run):
            click.echo(line)
        return 0
    if where["retries"] and not where["wait"]:
        raise UsageError(f"retries={where['retries']} needs --wait; somebody must see that an attempt failed")
    for attempt in range(where["retries"] + 1):
        submitted = jobs.submit(job, run)
        if submitted.status:
            log.info(f"{run} is there already: {submitted.status}")
        else:
            log.info(f"{run} is submitted to {job.backend}: {submitted.ids}")
        if not where["wait"]:
            break
        ended = jobs.wait(run)
        log.info(f"{run}: {ended}")
        if ended.state not in {"failed", "lost"}:
            return 0 if ended.state == "done" else 1
        if attempt == where["retries"]:
            return 1
    click.echo(run)
    return 0


def _absolute(name: str) -> str:
    """A path that means the same from everywhere; URLs do."""
    return name if "://" in name else os.path.abspath(name)  # noqa: PTH100


COMMANDS = (submit,)
