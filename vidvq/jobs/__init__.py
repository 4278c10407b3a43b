"""The corpus job of all stages: plan, resume, update, execute and account; see :mod:`vidvq.jobs.stage`."""

from vidvq.jobs.clip_functions import ClipFunction, ClipFunctionConfig, ClipFunctionStage
from vidvq.jobs.estimate import Estimate, estimate
from vidvq.jobs.rows import ClipRow, VideoRow
from vidvq.jobs.run import run_job
from vidvq.jobs.stage import ClipStage, ListedStage, Monitor, ShardResult, ShardTask, Stage, VideoStage
from vidvq.jobs.update import CorpusUpdate

__all__ = [
    "ClipFunction",
    "ClipFunctionConfig",
    "ClipFunctionStage",
    "ClipRow",
    "ClipStage",
    "CorpusUpdate",
    "Estimate",
    "ListedStage",
    "Monitor",
    "ShardResult",
    "ShardTask",
    "Stage",
    "VideoRow",
    "VideoStage",
    "estimate",
    "run_job",
]
