"""Stages of `vidvq generate`, run as corpus jobs. Imports no torch: decoding processes load this module."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vidvq.errors import UsageError
from vidvq.formats.commit import ShardDraft, commit_shard, read_commits
from vidvq.formats.generator import GeneratorCard
from vidvq.formats.plan import read_plan
from vidvq.formats.rows import PlanRow
from vidvq.formats.token_index import index_shard
from vidvq.formats.token_location import TokenLocation
from vidvq.formats.token_shard import CARD, PREFIX, encode_tokenizer_card
from vidvq.generate.conditions import ClipConditions
from vidvq.generate.requests import PredictConfig, RequestConfig, SampleConfig
from vidvq.generate.sampling.execution import CPU, GenerationExecution
from vidvq.generate.stages.batches import Batches, BatchPipeline, begin_shard
from vidvq.jobs.stage import Activity, AnyRow, ListedStage, ShardResult, ShardTask, Stage
from vidvq.jobs.timing import Stopwatch
from vidvq.runtime import Pool, RuntimeConfig, count_gpus
from vidvq.storage import pretty_json, sha256_bytes

if TYPE_CHECKING:
    from vidvq.generate.sampling.pipeline import GenerationPipeline, PendingSample

FORMAT = "vidvq.generated/1"


@dataclass(frozen=True, kw_only=True)
class PromptRow(PlanRow):
    """One sample to generate.

    Attributes:
        source: file name of the token shard with the given frames; "" for none.
        index: index of the sample in its token shard, or among all samples without one.
    """

    source: str = ""
    index: int = 0

    @property
    def origin(self) -> str:
        """Token shard of the prompt, or the key of the sample."""
        return self.source or self.key


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage[AnyRow], ABC):
    """Base of the stages.

    Attributes:
        execution: device, precision and batch size.
        gpus: number of GPUs per worker.
    """

    task: str
    generator: Path
    fingerprint: str
    card: GeneratorCard
    config: RequestConfig
    execution: GenerationExecution = CPU
    gpus: float = 0
    name = "generate"
    prefix = PREFIX
    thumbnail_count = 0

    def identity(self) -> dict[str, Any]:
        """Return what the samples depend on: generator, task, settings and execution."""
        made_by = {"generator": self.fingerprint, "token_fingerprint": self.card.tokenizer.token_fingerprint}
        return {"task": self.task} | made_by | self.config.identity() | self.execution.identity()

    def pipeline(self, tokenizer: Path | None) -> "GenerationPipeline":
        """Load the generator, and the tokenizer if there is one."""
        from vidvq.generate.sampling.pipeline import GenerationPipeline

        return GenerationPipeline(self.generator, self.config, tokenizer, self.execution)

    def files(self) -> dict[str, bytes]:
        """Return ``tokenizer.json``, and ``generator.json``, which records what generated the tokens."""
        made_by = pretty_json({"format": FORMAT} | self.identity())
        return {CARD: encode_tokenizer_card(self.card.tokenizer), "generator.json": made_by}


@dataclass(frozen=True, kw_only=True)
class _PromptStage(GenerateStage[PromptRow], ListedStage[PromptRow], ABC):
    """Base of the stages whose prompts are tokens or nothing.

    Attributes:
        tokenizer: folder of the tokenizer whose code vectors are averaged; None without ``sampling.estimate=mean``.
    """

    tokenizer: Path | None = None
    row = PromptRow
    unit = "samples"
    totals = ("samples",)
    activities = {"process": Activity("generating")}  # noqa: RUF012 (a constant)

    @classmethod
    def open(cls, inputs: list[str], config: Any, **options: Any) -> "Stage[Any]":
        """Build the stage; see :mod:`vidvq.generate.stages.open`."""
        return cls(config=config, **options)

    def worker(self, pool: Pool) -> "PromptWorker":
        """Build a worker in the current process."""
        return PromptWorker(self, self.pipeline(self.tokenizer))

    @abstractmethod
    def prepare_sample(
        self, pipeline: "GenerationPipeline", row: PromptRow, location: TokenLocation | None
    ) -> "PendingSample":
        """See :class:`PromptStage`."""

    def locations(self, shard: str) -> dict[str, TokenLocation]:
        """Return the token samples of a shard that holds prompts, by key."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SampleStage(_PromptStage):
    """Generates clips without a prompt, optionally of a class or of texts.

    Attributes:
        texts: texts, each of which has ``config.n`` samples; empty for no text condition.
    """

    config: SampleConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = SampleConfig
    texts: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return what the samples depend on; includes the texts."""
        return super().identity() | ({"texts": list(self.texts)} if self.texts else {})

    def rows(self) -> Iterator[PromptRow]:
        """Yield one row per sample; those of one text follow one another."""
        for index in range(self.config.n * max(len(self.texts), 1)):
            yield PromptRow(key=f"sample-{index:06d}", shard=index // self.config.items_per_shard, index=index)

    def prepare_sample(
        self, pipeline: "GenerationPipeline", row: PromptRow, location: TokenLocation | None
    ) -> "PendingSample":
        """Return a sample without given frames."""
        return pipeline.sample(row.key, row.index, self.texts[row.index // self.config.n] if self.texts else None)


class TokenPrompts:
    """The prompts of a stage that makes one sample of each token sample; base class.

    Attributes:
        tokens: directory of token shards.
    """

    tokens: Path

    def rows(self) -> Iterator[PromptRow]:
        """Yield one row per token sample; each token shard becomes one output shard."""
        plan, shard = read_plan(self.tokens), 0
        for commit in read_commits(self.tokens, plan.shard_names()):
            if commit and commit.sha256:
                keys = dict.fromkeys(member.key for member in commit.members)
                for index, key in enumerate(keys):
                    yield PromptRow(key=key, shard=shard, source=commit.shard, index=index)
                shard += 1

    def locations(self, shard: str) -> dict[str, TokenLocation]:
        """Return the token samples of a shard, by key."""
        return {location.key: location for location in index_shard(self.tokens / shard)}

    def require(self, row: PromptRow, location: TokenLocation | None) -> TokenLocation:
        """Return the location of a token sample.

        Raises:
            UsageError: its shard lacks it.
        """
        if location is None:
            raise UsageError(f"{self.tokens / row.source} lacks {row.key}; run vidvq verify {self.tokens}")
        return location


@dataclass(frozen=True, kw_only=True)
class PredictTokens(TokenPrompts, _PromptStage):
    """Continues the samples of a directory of token shards.

    Attributes:
        conditions: conditions by clip key.
    """

    config: PredictConfig  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    config_type = PredictConfig
    tokens: Path
    conditions: ClipConditions = field(default_factory=ClipConditions)

    def identity(self) -> dict[str, Any]:
        """Return what the samples depend on; includes the tokens."""
        return super().identity() | {"tokens": identify_tokens(self.tokens)} | self.conditions.identity()

    def prepare_sample(
        self, pipeline: "GenerationPipeline", row: PromptRow, location: TokenLocation | None
    ) -> "PendingSample":
        """Return the continuation of a sample."""
        codes, info = self.require(row, location).read(self.card.tokenizer)
        return pipeline.predict(row.key, codes, info, self.conditions.of(row.key))


def gpus_per_worker(runtime: RuntimeConfig, device: str = "auto") -> float:
    """Return the GPUs of a worker: none if the cluster that the job joins, or else this machine, has none.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        StoreError: the cluster cannot be reached.
        UsageError: a GPU is asked for, and there is none.
    """
    from vidvq.pretrained.device import find_device

    return runtime.gpus_per_worker if find_device(device, partial(count_gpus, runtime)) == "cuda" else 0


def identify_tokens(tokens: Path) -> dict[str, str]:
    """Return what identifies a directory of token shards: its plan, and the SHA-256 of its shards."""
    plan = read_plan(tokens)
    digests = [commit.sha256 or "" for commit in read_commits(tokens, plan.shard_names()) if commit]
    return {"plan_id": plan.plan_id, "sha256": sha256_bytes("\n".join(digests).encode())}


class PromptStage(Protocol):
    """A stage that makes one sample of each row."""

    def locations(self, shard: str) -> dict[str, TokenLocation]:
        """Return the token samples of a shard that holds prompts, by key."""
        ...

    def prepare_sample(self, pipeline: Any, row: PromptRow, location: TokenLocation | None) -> Any:
        """Return a sample that the pipeline can generate.

        Args:
            location: token sample of the prompt; None without one.

        Raises:
            UsageError: the prompt is unusable; the sample counts as failed.
        """
        ...


class PromptWorker:
    """Generates shards."""

    def __init__(self, stage: PromptStage, pipeline: BatchPipeline[Any]) -> None:
        self._stage, self._pipeline, self._clock = stage, pipeline, Stopwatch()

    def __call__(self, task: ShardTask[PromptRow]) -> ShardResult:
        """Generate and commit a shard."""
        copied = dict[str, int]()
        with self._clock.activity("write"):
            commit = commit_shard(task.out, task.shard, task.plan_id, partial(self._fill, task, copied))
        return self._clock.result(commit, copied)

    def _fill(self, task: ShardTask[PromptRow], copied: dict[str, int], draft: ShardDraft) -> None:
        writer, rows = begin_shard(task, draft, copied)
        batches, locations = Batches(self._pipeline, writer), self._stage.locations(task.rows[0].source)
        for row in rows:
            prepare = partial(self._stage.prepare_sample, self._pipeline, row, locations.get(row.key))
            with self._clock.activity("process"):
                batches.add(row, prepare)
        with self._clock.activity("process"):
            batches.flush()
