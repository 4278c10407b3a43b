"""`vidvq train`."""

import os

import click

from vidvq import config
from vidvq.cli.config import settings_epilog
from vidvq.cli.options import is_override, run_out_option, with_option
from vidvq.errors import UsageError


@click.command(short_help="Train a tokenizer on clip shards.", epilog=settings_epilog("train"))
@click.argument("config_name", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@run_out_option
@click.option("--profile", is_flag=True, help="Profile steps 8 to 10: tables by part and operator, and a trace.")
def train(config_name: str, overrides: tuple[str, ...], out: str | None, profile: bool) -> int:
    """Train a tokenizer with the settings in CONFIG, a YAML file or the name of a packaged one.

    An interrupted run resumes with the same command. For several GPUs, start it with torchrun; for several nodes, with
    torchrun or `vidvq submit train`.

    \b
    vidvq train demo data.clips=runs/clips out=runs/train
    torchrun --nproc-per-node 8 -m vidvq train base data.clips=runs/clips out=runs/base
    """
    if is_override(config_name):
        raise UsageError(f"a config must precede {config_name}; give a YAML file or a packaged name, such as demo")
    # Read when torch loads. By default OpenMP threads spin at every barrier, which makes a step many times slower
    # when other processes use the cores. Short spinning costs a fifth on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from vidvq.train import TrainConfig, run_train

    settings = config.load(TrainConfig, config.find_config(config_name), with_option(overrides, "out", out))
    run_train(settings, profile)
    return 0
