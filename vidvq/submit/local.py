"""Backend for this machine."""

from collections.abc import Mapping

from vidvq.submit.detached import DetachedBackend
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.script import make_script
from vidvq.submit.spec import Job


class Backend(DetachedBackend):
    """Runs the job on this machine. See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset({"gpus"})

    def files(self, job: Job, directory: JobDirectory) -> Mapping[str, str]:
        values = {"NPROC": str(job.processes), "GPUS": str(job.resources.gpus)}
        return {"script.sh": make_script(job, directory, "node.sh", values)}
