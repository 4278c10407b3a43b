"""Scores of a generator as lines of text."""

from vidvq.generate.scores import GeneratorScores, TaskScore


def test_a_prediction_is_printed_over_its_horizon():
    curve = {"generator": [30.0, 29.0, 28.0, 27.0, 26.0], "baseline": [25.0, 24.0, 23.0, 22.0, 21.0]}
    means = {"generator": 28.0, "baseline": 23.0}
    score = TaskScore("last frame repeated", means, above=dict.fromkeys(means, 1.0), curve=curve)
    text = "\n".join(GeneratorScores("f", 1, 0, tasks={"predict": score}).lines())
    assert "predicted frames 1, 2, 4, 5: generator 30.00, 29.00, 27.00, 26.00 dB; last frame repeated 25.00, " in text
