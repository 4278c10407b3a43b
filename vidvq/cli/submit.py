"""`vidvq submit`: submit jobs to clusters, query them, read their logs, cancel them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidvq import config, log
from vidvq.cli.generate import load_training_config, training_arguments
from vidvq.cli.options import (
    checkpoint_option,
    config_option,
    config_path,
    out_option,
    run_out_option,
    split,
    with_option,
)
from vidvq.errors import UsageError
from vidvq.formats.checkpoint import BUNDLED
from vidvq.formats.plugin_reference import absolute_tokenizer
from vidvq.settings import absolute_path

if TYPE_CHECKING:
    from vidvq.generate.config import GenerateTrainConfig
    from vidvq.submit import Job
    from vidvq.train import TrainConfig

_JOB = click.argument("job", type=click.Path(path_type=Path))


@click.group(short_help="Run train, generate train, shard or tokenize on a cluster.")
def submit() -> None:
    """Run train, generate train, shard or tokenize on a cluster, and manage the jobs.

    The job directory, by default runs/jobs/NAME, records everything about it. Resubmitting is safe: the same
    command leaves a running or finished job alone and resumes one that failed or was cancelled.

    \b
    vidvq submit train vqgan-base-128 data.clips=runs/clips out=runs/big --backend slurm --nodes 4 --gpus 8
    vidvq submit generate train runs/tokens --out runs/generator --config generate-base --backend slurm --gpus 8
    vidvq submit status JOB; vidvq submit logs -f JOB; vidvq submit cancel JOB
    """


def _resource_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options for the backend and the requested resources."""
    for option in reversed(
        (
            click.option("--backend", default="local", show_default=True, help="local, slurm, ssh, ray or kubernetes."),
            click.option("--nodes", type=int, help="Number of nodes. Default: all hosts of --hostfile, else 1."),
            click.option("--gpus", default=0, show_default=True, help="GPUs per node."),
            click.option("--cpus", type=int, help="CPU cores per node."),
            click.option(
                "--time", metavar="H:MM:SS", help="Time limit of one attempt; training is requeued and resumes."
            ),
            click.option("--array", type=int, metavar="N", help="Slurm: array of N jobs that share the corpus."),
            click.option("--queue", help="Slurm partition or Kueue queue."),
            click.option("--address", metavar="URL", help="Ray: URL of the job server, http://HOST:8265."),
            click.option("--hostfile", metavar="FILE", help="ssh: file with lines of `HOST slots=8`."),
            click.option("--image", help="Kubernetes: container image."),
            click.option(
                "--memory",
                metavar="64Gi",
                help="Kubernetes: memory of a pod. Default: 2Gi per CPU core, without a limit.",
            ),
            click.option(
                "--shm-size", metavar="32Gi", help="Kubernetes: size of /dev/shm, part of the memory. Default: 16Gi."
            ),
            click.option("--namespace", help="Kubernetes: namespace."),
            click.option(
                "--volume",
                "volumes",
                multiple=True,
                metavar="CLAIM:/PATH",
                help="Kubernetes: volume claim to mount in all pods; may be repeated.",
            ),
            click.option(
                "--secret",
                "secrets",
                multiple=True,
                metavar="NAME",
                help="Kubernetes: secret whose keys become environment variables; may be repeated.",
            ),
            click.option(
                "--retries",
                type=click.IntRange(0),
                default=0,
                show_default=True,
                help="With --wait: retries after a failed attempt.",
            ),
            click.option("--wait", is_flag=True, help="Wait until the job ends; exit with 1 if it failed."),
            click.option("--dry-run", is_flag=True, help="Print the files and the command; write and submit nothing."),
            click.option(
                "--job",
                "job_directory",
                type=click.Path(path_type=Path),
                help="Job directory. Default: runs/jobs/NAME.",
            ),
        )
    ):
        function = option(function)
    return function


@submit.command(short_help="Train a tokenizer on a cluster.")
@click.argument("config_name", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@run_out_option
@_resource_options
def train(config_name: str, overrides: tuple[str, ...], out: str | None, **options: Any) -> int:
    """Run `vidvq train CONFIG [KEY=VALUE]...` with one process per GPU of every node."""
    from vidvq.train import TrainConfig

    loaded = config.load(TrainConfig, config.find_config(config_name), with_option(overrides, "out", out))
    return _submit_training("train", loaded, options)


@submit.group(short_help="Train a generator on a cluster.")
def generate() -> None:
    """Run `vidvq generate train` on a cluster."""


@generate.command("train", short_help="Train a generator on a cluster.")
@training_arguments
@_resource_options
def generate_train(arguments: tuple[str, ...], out: str | None, config_name: str, **options: Any) -> int:
    """Run `vidvq generate train TOKENS... [KEY=VALUE]...` with one process per GPU of every node."""
    return _submit_training("generate train", load_training_config(arguments, out, config_name), options)


@submit.command(short_help="Cut videos into clip shards on a cluster.")
@click.argument("videos", nargs=-1, metavar="[VIDEOS]... [KEY=VALUE]...")
@out_option
@config_option
@_resource_options
def shard(videos: tuple[str, ...], out: Path, config_name: str | None, **options: Any) -> int:
    """Run `vidvq shard VIDEOS...` on a Ray cluster that is started for the job."""
    from vidvq.shard import ShardConfig

    inputs, overrides = split(videos)
    if not inputs:
        raise UsageError("no VIDEOS are given; give video files or directories")
    settings = config.load(ShardConfig, config_path(config_name), overrides)
    target = absolute_path(str(out))
    return _submit(_job("shard", (*map(absolute_path, inputs), "--out", target), settings, target, options), options)


@submit.command(short_help="Tokenize clip shards or videos on a cluster.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCES... [KEY=VALUE]...")
@checkpoint_option
@out_option
@config_option
@_resource_options
def tokenize(sources: tuple[str, ...], checkpoint: Path, out: Path, config_name: str | None, **options: Any) -> int:
    """Run `vidvq tokenize SOURCES...` on a Ray cluster that is started for the job."""
    from vidvq.tokenize import TokenizeConfig

    inputs, overrides = split(sources)
    if not inputs:
        raise UsageError("no SOURCES are given; give a directory of clip shards, or video files or directories")
    settings = config.load(TokenizeConfig, config_path(config_name), overrides)
    target = absolute_path(str(out))
    # The path of the bundled checkpoint depends on where each node has vidvq installed.
    weights = () if checkpoint == BUNDLED else ("--checkpoint", absolute_tokenizer(str(checkpoint)))
    arguments = (*map(absolute_path, inputs), *weights, "--out", target)
    return _submit(_job("tokenize", arguments, settings, target, options), options)


@submit.command(short_help="Print the state of a job.")
@_JOB
def status(job: Path) -> int:
    """Print the state of the job of JOB, a job directory: waiting, running, done, failed, cancelled or lost."""
    from vidvq import submit as jobs

    click.echo(jobs.status(job))
    return 0


@submit.command(short_help="Print the output of a job.")
@_JOB
@click.option("-f", "--follow", is_flag=True, help="Follow the output until the job ends.")
def logs(job: Path, follow: bool) -> int:
    """Print the output of the job of JOB, a job directory."""
    from vidvq import submit as jobs

    for data in jobs.logs(job, follow):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0


@submit.command(short_help="Cancel a job; training saves first.")
@_JOB
def cancel(job: Path) -> int:
    """Cancel the job of JOB, a job directory. Training saves a checkpoint first; submit the job again to resume it."""
    from vidvq import submit as jobs

    before = jobs.cancel(job)
    log.info(f"{job} has already ended: {before}" if before.ended else f"{job} is being cancelled; it was {before}")
    return 0


def _submit_training(verb: str, settings: "TrainConfig | GenerateTrainConfig", options: dict[str, Any]) -> int:
    job = _job(verb, (), settings, absolute_path(settings.out), options)
    settings.data.micro_batch(job.resources.nodes * job.processes)
    return _submit(job, options)


def _job(verb: str, arguments: tuple[str, ...], settings: Any, out: str, options: dict[str, Any]) -> "Job":
    from vidvq import submit as jobs

    names = ("gpus", "cpus", "time", "array", "queue", "address")
    names += ("image", "memory", "shm_size", "namespace", "volumes", "secrets")
    hostfile = absolute_path(options["hostfile"]) if options["hostfile"] else None
    nodes = options["nodes"]
    if nodes is None:
        nodes = len(jobs.read_hostfile(Path(hostfile))) if hostfile else 1
    resources = jobs.Resources(nodes=nodes, hostfile=hostfile, **{name: options[name] for name in names})
    absolute = config.to_absolute_dict(settings)
    return jobs.Job(verb, arguments, absolute, out, options["backend"], resources, os.getcwd(), sys.executable)  # noqa: PTH109


def _submit(job: "Job", options: dict[str, Any]) -> int:
    from vidvq import submit as jobs

    directory = options["job_directory"] or Path("runs/jobs", job.name)
    if options["dry_run"]:
        for line in jobs.preview(job, directory):
            click.echo(line)
        return 0
    if options["retries"] and not options["wait"]:
        raise UsageError(f"retries={options['retries']} needs --wait, because this command starts the retries")
    for attempt in range(options["retries"] + 1):
        submitted = jobs.submit(job, directory)
        if submitted.status:
            log.info(f"{directory} was already submitted: {submitted.status}")
        else:
            log.info(f"{directory} submitted to {job.backend}: {submitted.ids}")
        if not options["wait"]:
            break
        ended = jobs.wait(directory)
        log.info(f"{directory}: {ended}")
        if ended.state not in {"failed", "lost"}:
            return 0 if ended.state == "done" else 1
        if attempt == options["retries"]:
            return 1
    click.echo(directory)
    return 0
