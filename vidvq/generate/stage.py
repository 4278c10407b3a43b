"""What `vidvq generate` makes, as stages of the corpus job. Imports no torch: decoding processes load this module."""

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidvq.errors import UsageError
from vidvq.formats.clip_shard import ClipInfo
from vidvq.formats.commit import Outcome, ShardDraft, commit_shard, read_commits
from vidvq.formats.generator import GeneratorCard
from vidvq.formats.plan import read_plan
from vidvq.formats.rows import PlanRow
from vidvq.formats.token_index import TokenLocation, index_shard
from vidvq.formats.token_shard import CARD, PREFIX, encode_tokenizer_card
from vidvq.generate.requests import PredictConfig, RequestConfig, SampleConfig
from vidvq.jobs.clip_functions import ClipFunction, ClipFunctionStage
from vidvq.jobs.stage import Activity, AnyRow, ListedStage, ShardResult, ShardTask, Stage
from vidvq.jobs.timing import Stopwatch
from vidvq.runtime import Pool
from vidvq.storage import pretty_json, sha256_bytes

if TYPE_CHECKING:
    from vidvq.generate.make import Maker

FORMAT = "vidvq.generated/1"


@dataclass(frozen=True, kw_only=True)
class PromptRow(PlanRow):
    """One sample to make.

    Attributes:
        source: file name of the token shard that gives its first frames; "" for none.
        index: index of the sample.
    """

    source: str = ""
    index: int = 0

    @property
    def origin(self) -> str:
        """The token shard, or the key."""
        return self.source or self.key


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage[AnyRow], ABC):
    """Base of the stages.

    Attributes:
        task: name of the task.
        generator: folder of the generator.
        fingerprint: its fingerprint.
        card: its card.
        config: what to make.
        gpus: GPUs of a worker.
    """

    task: str
    generator: Path
    fingerprint: str
    card: GeneratorCard
    config: RequestConfig
    gpus: float = 0
    name = "generate"
    prefix = PREFIX
    thumbnail_count = 0

    def identity(self) -> dict[str, Any]:
        """The generator, the task and how samples are drawn."""
        made_by = {"generator": self.fingerprint, "token_fingerprint": self.card.tokenizer.token_fingerprint}
        return {"task": self.task} | made_by | self.config.identity()

    def files(self) -> dict[str, bytes]:
        """Return ``tokenizer.json``, and ``generator.json``: what generated the tokens."""
        made_by = pretty_json({"format": FORMAT} | self.identity())
        return {CARD: encode_tokenizer_card(self.card.tokenizer), "generator.json": made_by}


@dataclass(frozen=True, kw_only=True)
class _PromptStage(GenerateStage[PromptRow], ListedStage[PromptRow], ABC):
    """Base of the stages whose prompts need no pixels."""

    row = PromptRow
    unit = "samples"
    totals = ("samples",)
    activities = {"process": Activity("generating")}  # noqa: RUF012 (a constant)

    @classmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "Stage[Any]":
        """Build the stage; see :mod:`vidvq.generate.open`."""
        return cls(config=config, **options)

    def worker(self, pool: Pool) -> "PromptWorker":
        """Build the worker, in its process."""
        from vidvq.generate.make import Maker

        return PromptWorker(self, Maker(self.generator, self.config))

    def make(self, maker: "Maker", row: PromptRow, place: TokenLocation | None) -> dict[str, bytes]:
        """Make the files of one sample.

        Raises:
            UsageError: the prompt cannot be used; the sample counts as failed.
        """
        raise NotImplementedError

    def places(self, shard: str) -> dict[str, TokenLocation]:
        """The token samples of a shard that prompts are read from, by key."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SampleStage(_PromptStage):
    """Samples from nothing, or from a class."""

    config: SampleConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = SampleConfig

    def rows(self) -> Iterator[PromptRow]:
        """Yield a row for each sample."""
        for index in range(self.config.n):
            yield PromptRow(key=f"sample-{index:06d}", shard=index // self.config.items_per_shard, index=index)

    def make(self, maker: "Maker", row: PromptRow, place: TokenLocation | None) -> dict[str, bytes]:
        """Make one sample."""
        return maker.sample(row.key, row.index)


@dataclass(frozen=True, kw_only=True)
class PredictTokens(_PromptStage):
    """Continues the samples of a directory of token shards.

    Attributes:
        tokens: the directory.
        labels: class of a clip by key, from 1.
        actions: actions ``t a`` of a clip by key.
        conditions: SHA-256 of the conditions (hex); "" without.
    """

    config: PredictConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = PredictConfig
    tokens: Path
    labels: dict[str, int] = field(default_factory=dict[str, int])
    actions: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    conditions: str = ""

    def identity(self) -> dict[str, Any]:
        """Those of every task, and the tokens."""
        plan = read_plan(self.tokens)
        digests = [commit.sha256 or "" for commit in read_commits(self.tokens, plan.shard_names()) if commit]
        given = {"plan_id": plan.plan_id, "sha256": sha256_bytes("\n".join(digests).encode())}
        found = super().identity() | {"tokens": given}
        return found | ({"conditions": self.conditions} if self.conditions else {})

    def rows(self) -> Iterator[PromptRow]:
        """Yield a row for each sample of the tokens; one output shard for each token shard."""
        plan, shard = read_plan(self.tokens), 0
        for commit in read_commits(self.tokens, plan.shard_names()):
            if commit and commit.sha256:
                keys = dict.fromkeys(member.key for member in commit.members)
                for index, key in enumerate(keys):
                    yield PromptRow(key=key, shard=shard, source=commit.shard, index=index)
                shard += 1

    def places(self, shard: str) -> dict[str, TokenLocation]:
        """The token samples of a shard, by key."""
        return {place.key: place for place in index_shard(self.tokens / shard)} if shard else {}

    def make(self, maker: "Maker", row: PromptRow, place: TokenLocation | None) -> dict[str, bytes]:
        """Continue one sample."""
        if place is None:
            raise UsageError(f"{self.tokens / row.source} lacks {row.key}; run vidvq verify {self.tokens}")
        codes, info = place.read(self.card.tokenizer)
        return maker.predict(row.key, codes, info, self.labels.get(row.key, 0), self.actions.get(row.key))


class PromptWorker:
    """Makes one shard after another.

    Args:
        stage: what to make.
        maker: the generator.
    """

    def __init__(self, stage: _PromptStage, maker: "Maker") -> None:
        self._stage, self._maker, self._clock = stage, maker, Stopwatch()

    def __call__(self, task: ShardTask[PromptRow]) -> ShardResult:
        """Make and commit a shard."""

        def fill(draft: ShardDraft) -> None:
            places = self._stage.places(task.rows[0].source)
            for row in task.rows:
                try:
                    with self._clock.activity("process"):
                        files = self._stage.make(self._maker, row, places.get(row.key))
                except UsageError as error:
                    draft.failed.append(Outcome(row.key, "bad_prompt", f"{row.key}: {error}"))
                else:
                    draft.add(row.key, files, samples=1)

        with self._clock.activity("write"):
            commit = commit_shard(task.out, task.shard, task.plan_id, fill)
        return self._clock.result(commit)


@dataclass(frozen=True, kw_only=True)
class GenerateClips(GenerateStage[Any], ClipFunctionStage):
    """Predicts, interpolates or fills in the clips of clip shards, from their pixels.

    Attributes:
        tokenizer: folder of the tokenizer.
    """

    config: RequestConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = RequestConfig
    tokenizer: Path
    gpus: float = 0

    def function(self) -> ClipFunction:
        """Load the generator and the tokenizer."""
        from vidvq.generate.make import Maker

        maker = Maker(self.generator, self.config, self.tokenizer)

        def make(frames: np.ndarray, info: ClipInfo) -> dict[str, bytes]:
            return maker.from_pixels(frames, info)

        return make
