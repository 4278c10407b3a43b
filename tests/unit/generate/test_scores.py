"""Scores of a generator as lines of text."""

from vidvq.generate.evaluation.scores import GeneratorScores, TaskScore


def test_a_prediction_is_printed_over_its_horizon():
    curve = {"generator": [30.0, 29.0, 28.0, 27.0, 26.0], "baseline": [25.0, 24.0, 23.0, 22.0, 21.0]}
    means = {"generator": 28.0, "baseline": 23.0}
    score = TaskScore("last frame repeated", means, above=dict.fromkeys(means, 1.0), curve=curve)
    rows = [line.split() for line in GeneratorScores("f", 1, 0, tasks={"predict": score}).lines()[-3:]]
    assert rows[0] == "predict: PSNR in dB mean above frame 1 frame 2 frame 4 frame 5".split()
    assert rows[1] == "generator 28.00 100% 30.00 29.00 27.00 26.00".split()
    assert rows[2] == "last frame repeated (baseline) 23.00 - 25.00 24.00 22.00 21.00".split()


def test_the_scores_of_a_task_are_a_table():
    psnr = {"generator": 28.0, "baseline": 23.0, "ceiling": 9.5}
    score = TaskScore("linear blend", psnr, {"generator": 0.5, "ceiling": 1.0}, {name: 0.25 for name in psnr})
    assert GeneratorScores("f", 1, 0, tasks={"interpolate": score}).lines()[-4:] == [
        "interpolate: PSNR in dB        mean  above  ST-LPIPS",
        "  generator                   28.00    50%     0.250",
        "  linear blend (baseline)     23.00      -     0.250",
        "  tokenizer's reconstruction   9.50   100%     0.250",
    ]


def test_clips_with_larger_frames_than_those_of_training_are_said_to_be_skipped():
    said = "1 held-out clip; 3 with larger frames than the generator was trained on were skipped"
    assert GeneratorScores("f", 1, 3).lines()[0] == said
    assert GeneratorScores("f", 2, 0).lines()[0] == "2 held-out clips"
