"""`vidvq generate guide` as a corpus job over token shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidvq.errors import UsageError
from vidvq.formats.plan import has_plan, read_plan
from vidvq.formats.token_index import TokenLocation
from vidvq.formats.token_shard import (
    CARD,
    PREFIX,
    TokenizerCard,
    check_fingerprint,
    encode_tokenizer_card,
    read_tokenizer_card,
)
from vidvq.generate.requests import GuideConfig
from vidvq.generate.stages.token_stage import (
    FORMAT,
    PromptRow,
    PromptWorker,
    TokenPrompts,
    gpus_per_worker,
    identify_tokens,
)
from vidvq.jobs.stage import Activity, ListedStage
from vidvq.pretrained import find_tokenizer
from vidvq.runtime import Pool
from vidvq.storage import pretty_json, resolve_path, sha256_file

if TYPE_CHECKING:
    from vidvq.generate.stages.guide import Guide, GuidedSample


@dataclass(frozen=True, kw_only=True)
class GuideStage(TokenPrompts, ListedStage[PromptRow]):
    """Moves the samples of a directory of token shards towards a text.

    Attributes:
        tokens: directory of token shards.
        card: card of the tokens.
        tokenizer: folder of the tokenizer.
        decoder: fingerprint of its decoder.
        clip: folder of the CLIP model.
        weights: SHA-256 of its weights (hex).
        text: what the frames should show.
        config: settings.
        gpus: number of GPUs per worker.
    """

    config: GuideConfig
    config_type = GuideConfig
    tokens: Path
    card: TokenizerCard
    tokenizer: Path
    decoder: str
    clip: Path
    weights: str
    text: str
    gpus: float = 0
    name = "generate"
    prefix = PREFIX
    thumbnail_count = 0
    row = PromptRow
    unit = "samples"
    totals = ("samples",)
    activities = {"process": Activity("guiding")}  # noqa: RUF012 (a constant)

    @classmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "GuideStage":
        """Check a request and build its stage; the options are ``text``, ``clip`` and ``checkpoint``.

        Raises:
            UsageError: the input is not a directory of token shards, the tokenizer did not make them or is of another
                package, or the folder holds no CLIP model.
        """
        from vidvq.generate.stages.guide import check_clip, open_tokenizer

        tokens, clip = resolve_path(inputs[0]) if len(inputs) == 1 else None, options["clip"]
        if tokens is None or not has_plan(tokens) or read_plan(tokens).header.prefix != PREFIX:
            raise UsageError(
                f"guide takes one directory of token shards, not {' '.join(inputs) or 'nothing'}; make one of clips, "
                "videos or images with vidvq tokenize"
            )
        if not options["text"].strip():
            raise UsageError("--text is empty; say what the frames should show")
        check_clip(clip)
        card, tokenizer = read_tokenizer_card(tokens), find_tokenizer(options["checkpoint"])
        _, own = open_tokenizer(tokenizer)
        check_fingerprint(tokens, card, options["checkpoint"], own)
        return cls(
            config=config,
            tokens=tokens,
            card=card,
            tokenizer=tokenizer,
            decoder=own.decoder_fingerprint,
            clip=clip,
            weights=sha256_file(clip / "model.safetensors"),
            text=options["text"],
            gpus=gpus_per_worker(config.runtime),
        )

    def identity(self) -> dict[str, Any]:
        """Return what the samples depend on: tokens, text, models and settings."""
        made_by = {"token_fingerprint": self.card.token_fingerprint, "decoder_fingerprint": self.decoder}
        guide = {"task": "guide", "text": self.text, "clip": self.weights, "tokens": identify_tokens(self.tokens)}
        return guide | made_by | self.config.identity()

    def files(self) -> dict[str, bytes]:
        """Return ``tokenizer.json``, and ``generator.json``, which records what made the tokens."""
        made_by = pretty_json({"format": FORMAT} | self.identity())
        return {CARD: encode_tokenizer_card(self.card), "generator.json": made_by}

    def worker(self, pool: Pool) -> PromptWorker:
        """Build a worker in the current process."""
        from vidvq.generate.stages.guide import Guide

        return PromptWorker(self, Guide(self.tokenizer, self.clip, self.text, self.config, self.card))

    def prepare_sample(self, pipeline: "Guide", row: PromptRow, location: TokenLocation | None) -> "GuidedSample":
        """Return a sample to edit."""
        return row.key, *self.require(row, location).read(self.card)
