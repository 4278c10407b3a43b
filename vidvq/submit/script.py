"""Scripts: a head with everything that is particular to the job, above a template that ships in ``launch/``."""

import shlex
from collections.abc import Iterable, Mapping

from vidvq import config
from vidvq.storage import is_remote, place
from vidvq.submit.folder import RunFolder
from vidvq.submit.job import Job


def template(name: str) -> str:
    """A script of ``launch/``, as text."""
    return config.packaged("launch", name).read_text(encoding="utf-8")


def make_script(job: Job, run: RunFolder, name: str, values: Mapping[str, str], directives: Iterable[str] = ()) -> str:
    """The whole script.

    Args:
        job: what runs.
        run: where it says how it ended.
        name: of a script in ``launch/`` that runs the vidvq command line in ``$@``.
        values: variables that it reads.
        directives: lines for a scheduler, without the ``#``; they come first, where a scheduler looks for them.
    """
    body = template(name).removeprefix("#!/usr/bin/env bash\n")
    variables = {"PYTHON": job.python, "RUN": str(run.path), "SHARED": shared_path(job, run), **values}
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#{directive}" for directive in directives),
            f"# {job.name}, made by vidvq submit; from the line on it is launch/{name}.",
            "# What stands in quotes is meant to the letter:",
            "# shellcheck disable=SC2016,SC2089,SC2090",
            "set -euo pipefail",
            *(f"export {variable}={shlex.quote(value)}" for variable, value in variables.items()),
            'cd "$RUN"',
            *_exit_code(job),
            # Bash runs it when the command that it waits for has ended, which has had the signal too.
            "trap 'exit 143' TERM",
            f"cd {shlex.quote(job.folder)}",
            f"set -- {shlex.join(command_line(job, run))}",
            f"# ---- launch/{name}",
            body,
        ]
    )


def _exit_code(job: Job) -> list[str]:
    """How the script says how it ended. Of an array it is 0 once one job has seen that all is there."""
    if job.resources.array is None:
        return ["rm -f exit_code", "trap 'echo $? >\"$RUN/exit_code\"' EXIT"]
    return ['trap \'code=$?; [ "$(cat "$RUN/exit_code" 2>/dev/null)" = 0 ] || echo $code >"$RUN/exit_code"\' EXIT']


def command_line(job: Job, run: RunFolder) -> list[str]:
    """The verb and its arguments, with the settings from the run folder."""
    if job.verb == "train":
        return ["train", str(run.config)]
    return [job.verb, *job.arguments, "--config", str(run.config)]


def shared_path(job: Job, run: RunFolder) -> str:
    """What all machines of a job must be able to write."""
    return shared_out(job) or str(run.path)


def shared_out(job: Job) -> str:
    """The output directory, or "" where it is in an object store."""
    return "" if is_remote(place(job.out)) else job.out
