"""Quality gates, which stop a job whose tokens have become poor."""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from vidvq.errors import JobStopped
from vidvq.formats.commit import Commit
from vidvq.formats.summary import SCORE_SUFFIX, SCORE_UNIT
from vidvq.formats.token_shard import TokenizerCard
from vidvq.jobs.nvdec import NvdecMonitor
from vidvq.jobs.stage import Monitor, ShardResult
from vidvq.metrics.codes import CodeCounts
from vidvq.tokenize.config import QualityPolicy

# The PSNR of clips has a standard deviation of about 4 dB, so a mean over 64 is accurate to half a decibel.
_SCORED = 64
# Perplexity is underestimated by a factor of about exp(-size / (2 * tokens)) (Miller 1955): half a percent at 100
# tokens per code, and a few percent because neighbouring tokens are correlated.
_TOKENS_PER_CODE = 100
_REMEDY = "committed shards stay; check the checkpoint and the videos, or"


@dataclass
class ShardDetails:
    """Measurements of a shard, beside its record.

    Attributes:
        codes: counts of the codes that were encoded.
        compared: number of tokens that were compared with fp32.
        differing: number of those that differ.
        decoders: number of decoding processes of the worker.
        from_nvdec: frames that NVDEC decoded; None if the job does not use it.
    """

    codes: CodeCounts
    compared: int = 0
    differing: int = 0
    decoders: int = 0
    from_nvdec: int | None = None


class QualityGates(Monitor):
    """Stops a job by ``max_drop`` (over shards of all runs) and ``min_usage`` (over shards of this run)."""

    def __init__(self, card: TokenizerCard, policy: QualityPolicy) -> None:
        self._card, self._policy = card, policy
        self._total, self._recent_codes = CodeCounts(card), CodeCounts(card)
        self._compared = self._differing = 0
        self._decoders: dict[str, int] = {}
        self._nvdec = NvdecMonitor()
        self._reference = _Scores()
        self._recent: deque[_Scores] = deque()

    def on_commit(self, commit: Commit) -> None:
        """Add the scores of a shard.

        Raises:
            JobStopped: the mean PSNR of the latest scored samples is more than ``max_drop`` below that of the first.
        """
        scores = _Scores.of(commit.stats)
        if self._policy.max_drop is None or not scores.count:
            return
        if self._reference.count < _SCORED:
            self._reference += scores
            return
        self._recent.append(scores)
        while sum(entry.count for entry in self._recent) - self._recent[0].count >= _SCORED:
            self._recent.popleft()
        recent = sum(self._recent, _Scores())
        if recent.count >= _SCORED and recent.mean < self._reference.mean - self._policy.max_drop:
            raise JobStopped(
                f"{commit.shard}: mean PSNR of the last {recent.count} scored samples fell to {recent.mean:.2f} dB, "
                f"from {self._reference.mean:.2f} dB of the first {self._reference.count}; quality.max_drop="
                f"{self._policy.max_drop:g}; {_REMEDY} raise it and resume"
            )

    def on_result(self, result: ShardResult) -> None:
        """Add the codes of a shard that this run made.

        Raises:
            JobStopped: the perplexity of a codebook, as a fraction of its size, is below ``min_usage``.
        """
        details: ShardDetails = result.details
        self._total.merge(details.codes)
        self._compared += details.compared
        self._differing += details.differing
        self._decoders[result.worker] = details.decoders
        self._nvdec.count(details.from_nvdec, result)
        if self._policy.min_usage is None:
            return
        self._recent_codes.merge(details.codes)
        for index, book in enumerate(self._recent_codes.use()):
            if book.tokens < _TOKENS_PER_CODE * book.size:
                continue
            if book.perplexity < self._policy.min_usage * book.size:
                raise JobStopped(
                    f"{result.commit.shard}: {book.line()}, {book.perplexity / book.size:.1%} of its size, over the "
                    f"last {book.tokens} tokens; quality.min_usage={self._policy.min_usage:g}; {_REMEDY} "
                    "lower it and resume"
                )
            # Start a new window, so that a late collapse is not averaged away.
            self._recent_codes.reset(index)

    def metrics(self) -> dict[str, Any]:
        """What the run measured.

        ``codebooks`` is the usage of each codebook by the tokens of this run, ``decoders`` the number of decoding
        processes of all workers at its end. ``fp32_agreement`` counts the tokens that were compared with those of fp32,
        and those that differ. ``nvdec`` is that of :class:`NvdecMonitor`.
        """
        found: dict[str, Any] = {"codebooks": [asdict(book) for book in self._total.use()]}
        found["decoders"] = sum(self._decoders.values())
        found |= self._nvdec.metrics()
        if self._compared:
            found["fp32_agreement"] = {"compared": self._compared, "differing": self._differing}
        return found

    def lines(self) -> list[str]:
        """The metrics as text."""
        text = [f"{book.line()}, over {book.tokens} tokens of this run" for book in self._total.use() if book.tokens]
        if self._compared:
            share = self._differing / self._compared
            text.append(
                f"{share:.2%} of {self._compared} tokens, from the first samples of each worker, differ from fp32"
            )
        return text + self._nvdec.lines()


def refuse_poor(shard: str, stats: dict[str, int], policy: QualityPolicy) -> None:
    """Refuse to commit a shard whose scored samples have a mean PSNR below ``min_psnr``.

    Raises:
        JobStopped: the mean PSNR is below ``min_psnr``.
    """
    scores = _Scores.of(stats)
    if policy.min_psnr is None or not scores.count or scores.mean >= policy.min_psnr:
        return
    raise JobStopped(
        f"{shard}: mean PSNR of {scores.count} scored samples is {scores.mean:.2f} dB, below quality.min_psnr="
        f"{policy.min_psnr:g}; {_REMEDY} lower it and resume"
    )


class _Scores:
    """Number of scored samples, and the sum of their PSNR in ten-thousandths of a decibel."""

    def __init__(self, count: int = 0, total: int = 0) -> None:
        self.count, self.total = count, total

    @classmethod
    def of(cls, stats: dict[str, int]) -> "_Scores":
        """The scores in the statistics of a commit record."""
        return cls(stats.get("scored", 0), stats.get(f"psnr{SCORE_SUFFIX}", 0))

    def __add__(self, other: "_Scores") -> "_Scores":
        return _Scores(self.count + other.count, self.total + other.total)

    @property
    def mean(self) -> float:
        """Mean PSNR (dB)."""
        return self.total * SCORE_UNIT / self.count
