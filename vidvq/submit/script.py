"""Writes job scripts: a header with the job's own values, followed by a template from ``launch/``."""

import shlex
from collections.abc import Iterable, Mapping

from vidvq import config
from vidvq.storage import is_remote, resolve_path
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.spec import Job


def template(name: str) -> str:
    """Text of a script in ``launch/``."""
    return config.packaged("launch", name).read_text(encoding="utf-8")


def make_script(
    job: Job, directory: JobDirectory, name: str, values: Mapping[str, str], directives: Iterable[str] = ()
) -> str:
    """Build the script of a job.

    Args:
        directory: the job directory, into which the script writes its exit code.
        name: file name of a template in ``launch/`` that runs the vidvq command line in ``$@``.
        values: environment variables that the template reads.
        directives: scheduler directives without the ``#``. They precede all commands, as schedulers require.
    """
    body = template(name).removeprefix("#!/usr/bin/env bash\n")
    # All nodes must be able to write SHARED.
    shared = shared_out(job) or str(directory.path)
    variables = {"PYTHON": job.python, "JOB": str(directory.path), "SHARED": shared, **values}
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#{directive}" for directive in directives),
            f"# {job.name}, written by vidvq submit; the part below the marker is launch/{name}.",
            "# Quoted values are literal:",
            "# shellcheck disable=SC2016,SC2089,SC2090",
            "set -euo pipefail",
            *(f"export {variable}={shlex.quote(value)}" for variable, value in variables.items()),
            'cd "$JOB"',
            *_exit_code(job),
            # Bash runs the trap once the foreground command, which receives the signal too, has exited.
            "trap 'exit 143' TERM",
            f"cd {shlex.quote(job.folder)}",
            f"set -- {shlex.join(job.command_line(str(directory.config)))}",
            f"# ---- launch/{name}",
            body,
        ]
    )


def _exit_code(job: Job) -> list[str]:
    """Lines that record the exit code. An array's code is 0 once one of its jobs has found the output complete."""
    if job.resources.array is None:
        return ["rm -f exit_code", "trap 'echo $? >\"$JOB/exit_code\"' EXIT"]
    return ['trap \'code=$?; [ "$(cat "$JOB/exit_code" 2>/dev/null)" = 0 ] || echo $code >"$JOB/exit_code"\' EXIT']


def shared_out(job: Job) -> str:
    """Output directory of a job; empty if it is in an object store."""
    return "" if is_remote(resolve_path(job.out)) else job.out
