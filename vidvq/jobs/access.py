"""Detection of expired credentials: a job stops, instead of recording a failure of every video that follows."""

from collections.abc import Collection, Iterable, Sequence

from vidvq.corpus.fetch import DENIED, is_denied
from vidvq.corpus.source import Source
from vidvq.errors import JobStopped
from vidvq.formats.commit import Outcome
from vidvq.jobs.rows import VideoRow
from vidvq.redact import redact

# Denied sources in a row after which access is checked.
_IN_A_ROW = 8


class AccessWatch:
    """Stops a job once the server denies every source, including those that it served before.

    Only sources that are read with credentials count: objects of stores, and URLs with a user or a signature. A few
    denied ones among others are failures of these videos.

    Args:
        allow_private: whether URLs may lead to private addresses.
        allow_denied: whether denied sources always count as failures.
    """

    def __init__(self, allow_private: bool = False, allow_denied: bool = False) -> None:
        self._allow_private, self._allow_denied = allow_private, allow_denied
        self._served: Source | None = None
        self._denied: list[Source] = []

    def record(self, source: Source, reasons: Collection[str]) -> None:
        """Record the next source, with the reasons for which its items failed.

        Raises:
            JobStopped: the server denies access.
        """
        if self._allow_denied or not needs_credentials(source):
            return
        if DENIED.isdisjoint(reasons):
            self._served, self._denied = source, []
            return
        self._denied.append(source)
        if len(self._denied) % _IN_A_ROW == 0:
            self.check()

    def record_shard(self, rows: Sequence[VideoRow], failed: Iterable[Outcome]) -> None:
        """Record the sources of a finished shard before it is committed, and :meth:`check` access.

        Args:
            rows: items of the shard; those that were left out in planning are ignored.

        Raises:
            JobStopped: the server denies access.
        """
        reasons = {outcome.key: outcome.reason for outcome in failed}
        sources: dict[Source, set[str]] = {}
        for row in (row for row in rows if not row.outcome):
            sources.setdefault(row.source, set()).add(reasons.get(row.key, ""))
        for source, found in sources.items():
            self.record(source, found)
        self.check()

    def check(self) -> None:
        """Check access if the newest sources were denied, before their failures are recorded.

        Raises:
            JobStopped: the server denies access.
        """
        if not self._denied:
            return
        if self._served is None or is_denied(self._served, self._allow_private):
            count = f"{len(self._denied)} sources in a row" if len(self._denied) > 1 else "a source"
            raise JobStopped(
                f"the server denies access (401, 403) to {count}, such as {redact(self._denied[0].uri)}; renew the "
                "credentials and run the same command again, or count such sources as failed: limits.allow_denied=true"
            )


def needs_credentials(source: Source) -> bool:
    """Whether a source is an object of a store, or a URL with a user, a token or a signature."""
    container = source.container
    if container.startswith(("http://", "https://")):
        return redact(container) != container
    return "://" in container
