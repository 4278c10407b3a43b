"""Collection of samples into batches."""

from vidvq.errors import UsageError
from vidvq.generate.stages.batches import Batches
from vidvq.generate.stages.token_stage import PromptRow
from vidvq.jobs.shard_writer import Sample


class Pipeline:
    """Makes samples that are texts; those of one length share a batch."""

    batch = 2

    def __init__(self):
        self.made = []

    def batch_key(self, sample):
        return len(sample)

    def generate(self, samples):
        self.made.append(samples)
        return [{"txt": sample.encode()} for sample in samples]


class Writer(list):
    put = list.append


def test_samples_of_one_kind_are_made_together_and_the_rest_at_the_end():
    pipeline, written = Pipeline(), Writer()
    batches = Batches(pipeline, written)
    for key in ("a", "bb", "cc", "d", "ee", "f", "ggg"):
        batches.add(PromptRow(key=key), lambda key=key: key)
    assert pipeline.made == [["bb", "cc"], ["a", "d"]]
    batches.flush()
    assert pipeline.made[2:] == [["ee"], ["f"], ["ggg"]]
    assert [item.key for item in written] == [item.files["txt"].decode() for item in written]
    assert [item.key for item in written] == ["bb", "cc", "a", "d", "ee", "f", "ggg"]


def test_a_prompt_that_cannot_be_used_fails_alone():
    def refuse():
        raise UsageError("too short")

    written = Writer()
    batches = Batches(Pipeline(), written)
    batches.add(PromptRow(key="a", source="tokens-000000.tar"), refuse)
    batches.add(PromptRow(key="b"), lambda: "b")
    batches.flush()
    failed, made = written
    assert (failed.verdict, failed.outcome.reason) == ("failed", "bad_prompt")
    assert failed.outcome.detail == "tokens-000000.tar: a: too short" and isinstance(made, Sample)
