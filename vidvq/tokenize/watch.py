"""Whether a job is worth going on with: the driver's look at each shard as it comes in."""

from collections import deque

from vidvq.errors import JobStopped
from vidvq.formats.commit import Commit
from vidvq.formats.summary import SCORE_SUFFIX, SCORE_UNIT
from vidvq.formats.token_shard import TokenizerCard
from vidvq.metrics.codes import CodeCounts
from vidvq.tokenize.config import QualityPolicy

# Clips differ by some 4 dB from one another, so a mean of 64 is known to half a decibel.
_SCORED = 64
# What perplexity lacks for having counted too little is about exp(-size / (2 * tokens)): at 100 tokens for each code
# half a percent, and as neighbouring tokens are alike and say less, no more than a few.
_TOKENS_PER_CODE = 100
_REMEDY = "what is committed stays; look at the checkpoint and the videos, or"


class Watch:
    """Stops a job whose tokens went bad, by the means of many shards; :meth:`see` all shards, whoever made them when.

    Args:
        card: of the tokenizer.
        policy: the thresholds.
    """

    def __init__(self, card: TokenizerCard, policy: QualityPolicy) -> None:
        self.total = CodeCounts(card)
        self._card, self._policy = card, policy
        self._fresh = CodeCounts(card)
        self._reference = _Scores()
        self._last: deque[_Scores] = deque()

    def see(self, commit: Commit) -> None:
        """Take in the scores of a shard that was committed, now or by an earlier run.

        Raises:
            JobStopped: the last scored samples are poorer than the first, by more than ``max_drop``.
        """
        scores = _Scores(commit.stats.get("scored", 0), commit.stats.get(f"psnr{SCORE_SUFFIX}", 0))
        if self._policy.max_drop is None or not scores.count:
            return
        if self._reference.count < _SCORED:
            self._reference += scores
            return
        self._last.append(scores)
        while sum(entry.count for entry in self._last) - self._last[0].count >= _SCORED:
            self._last.popleft()
        recent = sum(self._last, _Scores())
        if recent.count >= _SCORED and recent.mean < self._reference.mean - self._policy.max_drop:
            raise JobStopped(
                f"{commit.shard}: PSNR fell to {recent.mean:.2f} dB on the mean of the last {recent.count} scored "
                f"samples from {self._reference.mean:.2f} dB on the first {self._reference.count}, more than "
                f"quality.max_drop={self._policy.max_drop:g}; {_REMEDY} raise it and go on"
            )

    def count(self, shard: str, counts: CodeCounts) -> None:
        """Take in the codes of a shard that this run made.

        Raises:
            JobStopped: the tokens use less of a codebook than ``min_usage``.
        """
        self.total.merge(counts)
        if self._policy.min_usage is None:
            return
        self._fresh.merge(counts)
        for index, book in enumerate(self._fresh.use()):
            if book.tokens < _TOKENS_PER_CODE * book.size:
                continue
            if book.perplexity < self._policy.min_usage * book.size:
                raise JobStopped(
                    f"{shard}: {book.line()}, {book.perplexity / book.size:.1%} of its size, over the last "
                    f"{book.tokens} tokens; quality.min_usage={self._policy.min_usage:g}; {_REMEDY} lower it and go on"
                )
            # A collapse late in a long job must not hide in the tokens of a good beginning.
            self._fresh.counts[index][:] = 0


class _Scores:
    """How many samples were scored, and the sum of their scores in ten-thousandths of a decibel."""

    def __init__(self, count: int = 0, total: int = 0) -> None:
        self.count, self.total = count, total

    def __add__(self, other: "_Scores") -> "_Scores":
        return _Scores(self.count + other.count, self.total + other.total)

    @property
    def mean(self) -> float:
        """In decibels."""
        return self.total * SCORE_UNIT / self.count
