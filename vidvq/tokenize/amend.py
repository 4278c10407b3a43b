"""Changes to a finished directory of tokens of raw video; see :mod:`vidvq.corpus.amend`."""

from collections.abc import Iterable
from pathlib import Path

from vidvq.config import apply_overrides, validate
from vidvq.corpus.amend import Change, Corpus
from vidvq.corpus.inputs import Fingerprint
from vidvq.corpus.listing import Listing
from vidvq.corpus.planned import Row
from vidvq.errors import UsageError
from vidvq.formats.plan import Plan, read_plan
from vidvq.formats.summary import JobSummary
from vidvq.runtime import Pool
from vidvq.storage import differences, place
from vidvq.tokenize.config import TokenizeConfig
from vidvq.tokenize.job import make_tokens, open_job
from vidvq.tokenize.videos import SCHEMA, look_into_videos, made_from


def standing_config(out: Path, overrides: list[str]) -> TokenizeConfig:
    """The settings that tokens of raw video were made with, and what a change to them may set.

    Raises:
        ValueError: there are none, they are of clips, or an override is wrong.
    """
    header = read_plan(out).header
    if header["stage"] != "tokenize":
        raise UsageError(f"{out} was written by vidvq {header['stage']}; give a directory of token shards")
    origin = header["made_from"]
    if "inputs" not in origin:
        raise UsageError(
            f"{out} holds the tokens of clip shards; change those with vidvq shard --add, --remove or --retry-failed, "
            f"then run vidvq tokenize CLIPS --out {out} again"
        )
    names = ("video", "gop_frames", "items_per_shard", "lists", "limits", "pack")
    settings = {name: origin[name] for name in names if name in origin}
    settings["batch"] = origin.get("batch", 1)
    # Which decoder scored is for the checkpoint to say.
    quality = origin.get("quality", {})
    settings["quality"] = {name: value for name, value in quality.items() if name != "decoder_fingerprint"}
    return validate(TokenizeConfig, apply_overrides(settings, overrides))


def amend(change: Change, checkpoint: Path, out: Path, config: TokenizeConfig) -> JobSummary:
    """Change a directory of tokens of raw video, and make the shards that this touches.

    Args:
        change: what is to become of it.
        checkpoint: of the tokenizer that made it.
        out: the directory.
        config: as :func:`standing_config` gives it.

    Raises:
        ValueError: a mistake in the change, or another tokenizer; nothing was changed.
        OSError: as :func:`vidvq.tokenize.job.run_tokenize`.
    """
    for given in change.add or ():
        if (place(given) / "plan.json").is_file():
            raise UsageError(f"{given} is a directory of shards; --add takes videos, as {out} was made of")
    job = open_job([], checkpoint, config)

    def extend(pool: Pool) -> Plan:
        def origin(inputs: Fingerprint) -> dict[str, object]:
            return made_from(job.config, inputs, job.card)

        def look(listing: Listing, _: Iterable[Row]) -> Iterable[Row]:
            for table in look_into_videos(out, listing, job.config, job.card, pool):
                yield from table.to_pylist()

        plan = read_plan(out)
        before = plan.header["made_from"]
        if found := list(differences("", before, origin(Fingerprint(before["inputs"])))):
            raise UsageError(f"{out} was made otherwise: {'; '.join(found)}. Give the --checkpoint that it was made by")
        return change.extend(Corpus(out, plan, SCHEMA, config.items_per_shard, config.lists, origin, look))

    return make_tokens(job, out, extend)
