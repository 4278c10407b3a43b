"""Every documented form of ``data.clips`` trains."""

import pytest


@pytest.mark.parametrize("form", ["{a}", "[{a}, {b}]", "{{{a}: 2, {b}: 1}}"], ids=["one", "list", "weights"])
def test_every_form_of_data_clips_trains(train, clips_dir, copy_of, tmp_path, form):
    run = train(tmp_path / "run", "steps=1", f"data.clips={form.format(a=clips_dir, b=copy_of(clips_dir))}")
    assert len(run.column("loss")) == 1
