"""Monitor of the share of frames that NVDEC decoded, for stages that may use it."""

from typing import Any

from vidvq.jobs.stage import Monitor, ShardResult


class NvdecMonitor(Monitor):
    """Counts frames by decoder. The details of a shard are the number of its frames that NVDEC decoded.

    They are None if the job does not use NVDEC.
    """

    def __init__(self) -> None:
        self._from_nvdec: int | None = None
        self._frames = 0

    def on_result(self, result: ShardResult) -> None:
        """Count the frames of a shard made by this run."""
        self.count(result.details, result)

    def count(self, from_nvdec: int | None, result: ShardResult) -> None:
        """Count the frames of a shard, of which NVDEC decoded ``from_nvdec``; None if the job does not use it."""
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
