"""Submits jobs to clusters. A job directory records each job; one backend module per kind of cluster."""

from vidvq.submit.backend import BACKENDS, Status
from vidvq.submit.client import Submitted, cancel, logs, preview, status, submit, wait
from vidvq.submit.hostfile import read_hostfile
from vidvq.submit.spec import VERBS, Job, Resources

__all__ = [
    "BACKENDS",
    "VERBS",
    "Job",
    "Resources",
    "Status",
    "Submitted",
    "cancel",
    "logs",
    "preview",
    "read_hostfile",
    "status",
    "submit",
    "wait",
]
