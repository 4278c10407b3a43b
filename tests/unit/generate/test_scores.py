"""Scores of a generator as lines of text."""

from vidvq.generate.scores import GeneratorScores, TaskScore


def test_a_prediction_is_printed_over_its_horizon():
    curve = {"generator": [30.0, 29.0, 28.0, 27.0, 26.0], "baseline": [25.0, 24.0, 23.0, 22.0, 21.0]}
    means = {"generator": 28.0, "baseline": 23.0}
    score = TaskScore("last frame repeated", means, above=dict.fromkeys(means, 1.0), curve=curve)
    text = "\n".join(GeneratorScores("f", 1, 0, tasks={"predict": score}).lines())
    assert "predicted frames 1, 2, 4, 5: generator 30.00, 29.00, 27.00, 26.00 dB; last frame repeated 25.00, " in text


def test_clips_with_larger_frames_than_those_of_training_are_said_to_be_skipped():
    said = "1 held-out clip; 3 with larger frames than the generator was trained on were skipped"
    assert GeneratorScores("f", 1, 3).lines()[0] == said
    assert GeneratorScores("f", 2, 0).lines()[0] == "2 held-out clips"
