"""Jobs on clusters: a run folder that says what runs, and one backend per kind of cluster."""

from vidvq.submit.backend import BACKENDS, Status
from vidvq.submit.hostfile import read_hostfile
from vidvq.submit.job import VERBS, Job, Resources
from vidvq.submit.run import Submitted, cancel, follow, preview, status, submit, wait

__all__ = [
    "BACKENDS",
    "VERBS",
    "Job",
    "Resources",
    "Status",
    "Submitted",
    "cancel",
    "follow",
    "preview",
    "read_hostfile",
    "status",
    "submit",
    "wait",
]
