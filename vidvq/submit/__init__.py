"""Jobs on clusters: a run folder that says what runs, and one backend per kind of cluster."""

from vidvq.submit.backend import BACKENDS, Backend, Status, get_backend
from vidvq.submit.folder import RunFolder, read_run
from vidvq.submit.job import Job, Resources
from vidvq.submit.run import Submitted, cancel, follow, status, submit

__all__ = [
    "BACKENDS",
    "Backend",
    "Job",
    "Resources",
    "RunFolder",
    "Status",
    "Submitted",
    "cancel",
    "follow",
    "get_backend",
    "read_run",
    "status",
    "submit",
]
