"""Every file of the golden corpus has the digests recorded in ``golden.json``.

After an intended change of bytes, ``python tests/helpers/golden.py`` records the new ones.
"""

import warnings
from collections.abc import Iterator

import pytest

from tests.helpers import golden


@pytest.fixture(scope="module")
def corpus(request) -> Iterator[golden.Golden]:
    """The corpus; the output of its jobs is kept if a test fails."""
    failed = request.session.testsfailed
    with golden.alone():
        yield golden.Golden()
        if request.session.testsfailed == failed:
            golden.empty(golden.ROOT)


@pytest.mark.parametrize("job", golden.JOBS)
def test_every_file_is_as_recorded(job, corpus):
    recorded, jobs = golden.read_record()
    here = golden.stack()
    other = {name for name in recorded if here[name] != recorded[name]}
    found = corpus.digests(job)
    undecided = sum(not other.isdisjoint(golden.decided_by(file)) for file in found)
    if undecided:
        libraries = ", ".join(f"{name} {here[name]} (recorded: {recorded[name]})" for name in sorted(other))
        warnings.warn(f"{job}: the bytes of {undecided} of {len(found)} files not compared: {libraries}", stacklevel=1)
    lines = golden.differences(jobs[job], found, other)
    assert not lines, f"{len(lines)} of {len(found)} files differ, see {golden.ROOT}:\n" + "\n".join(lines)


def test_every_job_is_recorded():
    assert golden.read_record()[1].keys() == golden.JOBS.keys()
