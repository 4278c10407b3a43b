"""`vidvq convert`."""

from pathlib import Path

import click

from vidvq import config, log
from vidvq.cli.options import PathOrUrl


@click.command(short_help="Convert a pickled checkpoint to safetensors.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=PathOrUrl(), help="Local folder to write.")
@click.option(
    "--keys", type=click.Path(path_type=Path), help="YAML or JSON file: entry, drop, rename, config; see the manual."
)
@click.option(
    "--model-config",
    type=click.Path(path_type=Path),
    help="YAML or JSON file that becomes the config.json of the folder.",
)
def convert(checkpoint: Path, out: Path, keys: Path | None, model_config: Path | None) -> int:
    """Write the weights in CHECKPOINT, a file of torch.save (.ckpt, .pth, .pt), as a folder of safetensors.

    Only tensors are read, and no code is run: a checkpoint that needs code is refused. If config.json is that of a
    tokenizer that vidvq knows, the folder is loaded once as a check, and every command takes it as --checkpoint.

    \b
    vidvq convert model.ckpt --out runs/converted --keys keys.yaml --model-config config.json
    """
    from vidvq.pretrained import convert as job

    found = job.convert(
        checkpoint,
        out,
        config.load(job.KeyMap, keys, []),
        config.read_yaml(model_config) if model_config else None,
    )
    for line in found.lines():
        log.info(line)
    return 0
