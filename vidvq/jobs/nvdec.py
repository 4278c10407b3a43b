"""How many frames of a run NVDEC decoded, where a stage may use it."""

from typing import Any

from vidvq.jobs.stage import Monitor, ShardResult


class NvdecMonitor(Monitor):
    """Counts frames by decoder. The details of a shard are its frames from NVDEC; None if the job does not use it."""

    def __init__(self) -> None:
        self._from_nvdec: int | None = None
        self._frames = 0

    def add(self, result: ShardResult) -> None:
        """Count the frames of a shard made by this run."""
        self.count(result.details, result)

    def count(self, from_nvdec: int | None, result: ShardResult) -> None:
        """As :meth:`add`, for details of another kind."""
        if from_nvdec is not None:
            made = result.made.get("frames", 0)
            # After a crash, frames are decoded again.
            self._from_nvdec = (self._from_nvdec or 0) + min(from_nvdec, made)
            self._frames += made

    def metrics(self) -> dict[str, Any]:
        """``nvdec``: frames that NVDEC decoded (``frames``), and all frames (``of``)."""
        return {} if self._from_nvdec is None else {"nvdec": {"frames": self._from_nvdec, "of": self._frames}}

    def lines(self) -> list[str]:
        """The metrics as text."""
        if self._from_nvdec is None or not self._frames:
            return []
        return [f"NVDEC decoded {self._from_nvdec / self._frames:.1%} of {self._frames} frames, PyAV the others"]
