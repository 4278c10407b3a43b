"""`where` selects clips for tokens, columns and training, and rows of lists; without it nothing changes."""

import json
import shutil
from pathlib import Path

import pytest

from vidvq.corpus.inputs import list_sources
from vidvq.corpus.lists import ListPolicy
from vidvq.data.index import read_clip_index
from vidvq.errors import UsageError
from vidvq.formats.columns import read_table
from vidvq.formats.plan import read_plan

FUNCTIONS = Path(__file__).parents[1] / "helpers/map_functions.py"
INLINE = ("runtime.workers=0", "max_failed=1")


@pytest.fixture
def clips(clips_dir, copy_of, vidvq) -> Path:
    """Thirteen clips in four shards, with the columns of ``motion``."""
    folder = copy_of(clips_dir, "clips")
    assert vidvq("map", folder, "--function", f"{FUNCTIONS}:motion", *INLINE).code == 0
    return folder


@pytest.fixture
def tokenize(checkpoint_dir, tmp_path, vidvq):
    def run(clips: Path, *settings: str, out: str = "tokens"):
        return vidvq("tokenize", clips, "--checkpoint", checkpoint_dir, "--out", tmp_path / out, *INLINE, *settings)

    return run


def expected(clips: Path, select) -> set[str]:
    return {key for key, row in read_table(clips).rows.items() if select(row)}


def outcomes(out: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Keys that are there, and ``(key, reason)`` of those that are not."""
    commits = [json.loads(path.read_text()) for path in (out / "commits").glob("*.json")]
    there = {name.partition(".")[0] for commit in commits for name, _, _ in commit["members"]}
    return there, {(item["key"], item["reason"]) for commit in commits for item in commit["filtered"]}


def test_tokens_are_of_the_selected_clips_and_the_others_are_counted(clips, tokenize, tmp_path, vidvq, snapshot):
    ran = tokenize(clips, "where=moves and index != 2")
    assert ran.code == 0, ran.err
    wanted = expected(clips, lambda row: row["moves"] and row["index"] != 2)
    everything = set(read_table(clips).rows)
    assert 0 < len(wanted) < len(everything) - 1
    there, filtered = outcomes(tmp_path / "tokens")
    assert there == wanted and filtered == {(key, "not_selected") for key in everything - wanted}
    assert f"{len(everything - wanted)} filtered" in ran.err and "where=moves and index != 2" in ran.err
    assert vidvq("verify", tmp_path / "tokens").code == 0
    before = snapshot(tmp_path / "tokens")
    assert tokenize(clips, "where=moves and index != 2").code == 0 and snapshot(tmp_path / "tokens") == before
    assert 'where was "moves and index != 2", now "moves"' in tokenize(clips, "where=moves").error
    assert tokenize(clips).error.count("where was") == 1


def test_intrinsic_and_carried_columns_need_no_function(clips_dir, tokenize, tmp_path):
    assert (
        tokenize(clips_dir, "where=num_frames = 9 and height = 32 and source like '%carphone.mp4' and fps > 1").code
        == 0
    )
    assert len(outcomes(tmp_path / "tokens")[0]) == sum(
        row == 9 for row in read_clip_index([str(clips_dir)]).num_frames
    )
    assert tokenize(clips_dir, "where=key like '%-00003' and duration_s > 0", out="one").code == 0
    assert len(outcomes(tmp_path / "one")[0]) == 1


def test_without_where_plans_are_as_they_were_and_no_column_is_read(clips, clips_dir, tokenize, tmp_path, snapshot):
    (clips / "columns/motion/plan.json").write_text("damaged")
    assert tokenize(clips).code == 0 and tokenize(clips_dir, out="other").code == 0
    assert snapshot(tmp_path / "tokens") == snapshot(tmp_path / "other")
    assert "where" not in read_plan(tmp_path / "tokens").made_from


def test_a_selection_follows_columns_that_were_completed(clips_dir, copy_of, tokenize, tmp_path, vidvq, monkeypatch):
    clips = copy_of(clips_dir, "clips")
    source, marker = tmp_path / "flaky.py", tmp_path / "mended"
    source.write_text(
        "import pathlib\n"
        "def flaky(frames, info):\n"
        f"    if info.clip_index == 5 and not pathlib.Path({str(marker)!r}).exists():\n"
        "        raise ValueError('not now')\n"
        "    return {'good': info.clip_index in (1, 5)}\n"
    )
    job = ("map", clips, "--function", f"{source}:flaky", *INLINE)
    assert vidvq(*job).code == 0 and tokenize(clips, "where=good").code == 0
    assert {key[-1] for key in outcomes(tmp_path / "tokens")[0]} == {"1"}
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").glob("*.tar")}
    marker.touch()
    assert vidvq(*job, "--retry-failed").code == 0
    ran = tokenize(clips, "where=good")
    assert ran.code == 0, ran.err
    assert {key[-1] for key in outcomes(tmp_path / "tokens")[0]} == {"1", "5"}
    assert vidvq("verify", tmp_path / "tokens").code == 0
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").glob("*.tar")}
    assert len(now.keys() - times.keys()) == 1 and times.items() <= now.items()
    fresh = tokenize(clips, "where=good", out="fresh")
    assert fresh.code == 0 and outcomes(tmp_path / "fresh") == outcomes(tmp_path / "tokens")
    # Columns of the same names that another function made are other inputs.
    shutil.rmtree(clips / "columns/flaky")
    assert vidvq(*job, "version=2").code == 0
    refused = tokenize(clips, "where=good")
    assert refused.code == 2 and "was made from other inputs or settings: columns" in refused.error


def test_map_selects_by_other_columns(clips, vidvq):
    job = ("map", clips, "--function", f"{FUNCTIONS}:factory", "where=index in (0, 1) or not moves is not null")
    assert vidvq(*job, *INLINE).code == 0
    assert {key[-2:] for key in outcomes(clips / "columns/factory")[0]} == {"00", "01"}


def test_training_reads_the_selected_clips(clips):
    everything = read_clip_index([str(clips)])
    found = read_clip_index([str(clips)], "moves and num_frames = 9")
    wanted = expected(clips, lambda row: row["moves"])
    assert set(found.keys) == wanted and found.keys == [key for key in everything.keys if key in wanted]
    with pytest.raises(UsageError, match=r"data\.where='index > 99' selects none of the clips in data\.clips="):
        read_clip_index([str(clips)], "index > 99")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("moton > 1", "where='moton > 1', character 1: there is no column moton; did you mean motion?"),
        ("motion >", "where='motion >', character 9: it ends, wanted a column"),
        ("motion > 'x'", "column motion (character 1) is 0.00"),
        ("carried.caption is null", "character 1: there is no column carried.caption"),
        ("fsp > 1", "there is no column fsp; did you mean fps?"),
    ],
)
def test_mistakes_in_where_are_one_line(where, message, clips, tokenize, tmp_path):
    ran = tokenize(clips, f"where={where}")
    assert ran.code == 2 and message in ran.error
    assert not list((tmp_path / "tokens").glob("*")), "nothing was written"
    with pytest.raises(UsageError) as error:
        read_clip_index([str(clips)], where)
    assert message.replace("where=", "data.where=") in str(error.value)


def test_unfinished_and_older_columns_are_refused(tmp_path, make_video, tokenize, vidvq):
    videos, clips = tmp_path / "videos", tmp_path / "clips"
    videos.mkdir()
    make_video(videos / "a.mp4", 8)
    settings = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 clips_per_shard=1".split()
    assert vidvq("shard", videos, "--out", clips, *settings, *INLINE).code == 0
    job = ("map", clips, "--function", f"{FUNCTIONS}:motion", *INLINE)
    assert vidvq(*job).code == 0
    (clips / "columns/motion/commits/columns-000001.tar.json").unlink()
    assert "columns-000001.tar is not committed; finish vidvq map" in tokenize(clips, "where=index = 0").error
    assert vidvq(*job).code == 0 and tokenize(clips, "where=index = 0").code == 0
    make_video(videos / "b.mp4", 4)
    assert vidvq("shard", videos / "b.mp4", "--out", clips, "--add", *INLINE).code == 0
    assert f"was made from an earlier state of {clips}; run vidvq map" in tokenize(clips, "where=index = 0").error
    assert vidvq(*job).code == 0
    ran = tokenize(clips, "where=index = 0")
    assert ran.code == 0, ran.err
    assert len(outcomes(tmp_path / "tokens")[0]) == 2 and vidvq("verify", tmp_path / "tokens").code == 0


def test_raw_video_is_selected_by_its_list(demo_videos, tokenize):
    error = tokenize(demo_videos / "train/carphone.mp4", "where=fps > 1").error
    assert "where='fps > 1' selects clips; lists.where selects raw videos by the columns of lists" in error


ROWS = (("a.mp4", "0.5", "x"), ("b.mp4", "", "y"), ("c.mp4", "10", ""))


def write_list(folder: Path, kind: str, make_video=None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"list.{kind}"
    rows = [{"path": uri, "motion": float(motion) if motion else None, "tag": tag or None} for uri, motion, tag in ROWS]
    if kind == "csv":
        path.write_text("path,motion,tag\n" + "".join(f"{','.join(row)}\n" for row in ROWS))
    elif kind == "jsonl":
        kept = ({name: value for name, value in row.items() if value is not None} for row in rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("motion > 1", "c"),
        ("motion > 0.1 and tag = 'x'", "a"),
        ("motion is null or tag is null", "bc"),
        ("not motion > 1", "a"),
        ("path like '%b.mp4'", "b"),
    ],
)
def test_rows_of_a_list_are_selected_by_its_columns(kind, where, names, tmp_path):
    sources = list_sources([str(write_list(tmp_path, kind))], ListPolicy(where=where))
    assert [Path(source.uri).stem for source in sources] == list(names)


def test_shard_makes_what_a_list_without_the_other_rows_gives(tmp_path, make_video, vidvq, snapshot):
    for uri, _, _ in ROWS:
        make_video(tmp_path / uri, 4, size=(32, 64 + 8 * ord(uri[0]) % 64))
    settings = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8".split()
    listed = write_list(tmp_path, "csv")
    ran = vidvq("shard", listed, "--out", tmp_path / "out", *settings, *INLINE, "lists.where=tag is not null")
    assert ran.code == 0 and "lists.where selects 2 of 3 rows of" in ran.err.replace("\n", " ")
    listed.write_text("path,motion,tag\na.mp4,0.5,x\nb.mp4,,y\n")
    assert vidvq("shard", listed, "--out", tmp_path / "plain", *settings, *INLINE).code == 0
    ours, plain = snapshot(tmp_path / "out"), snapshot(tmp_path / "plain")
    assert {name: digest for name, digest in ours.items() if name.endswith(".tar")} == {
        name: digest for name, digest in plain.items() if name.endswith(".tar")
    }
    assert read_plan(tmp_path / "plain").made_from["lists"] == {"uri": None, "start": None, "end": None, "carry": []}
    error = vidvq("shard", listed, "--out", tmp_path / "out", *settings, *INLINE, "lists.where=tag = 'x'").error
    assert 'lists.where was "tag is not null", now "tag = \'x\'"' in error


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("tagg = 'x'", "lists.where=\"tagg = 'x'\", character 1: there is no column tagg; did you mean tag?"),
        ("tag > 1", "column tag (character 1) is 'x'; it must be a number to be compared with one"),
        ("tag = = 1", "character 7: got =, wanted a column"),
    ],
)
def test_mistakes_in_the_where_of_lists_are_one_line(where, message, tmp_path, vidvq):
    ran = vidvq("shard", write_list(tmp_path, "csv"), "--out", tmp_path / "out", f"lists.where={where}", *INLINE)
    assert ran.code == 2 and message in ran.error


def test_an_unknown_column_of_jsonl_is_refused_once_all_lines_are_read(tmp_path):
    listed = write_list(tmp_path, "jsonl")
    with pytest.raises(UsageError, match=r"there is no column tagg; did you mean tag\?"):
        list(list_sources([str(listed)], ListPolicy(where="tagg is null")))


def test_lists_without_columns_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\n")
    with pytest.raises(
        UsageError, match=r"lists\.where selects rows of csv, tsv, jsonl and parquet lists; .*list\.txt has"
    ):
        list(list_sources([str(tmp_path / "list.txt")], ListPolicy(where="a = 1")))


def test_clips_carry_columns_that_where_selects_by(tmp_path, make_video, tokenize, vidvq):
    for uri, _, _ in ROWS:
        make_video(tmp_path / uri, 4)
    settings = "clip.num_frames=4 clip.min_frames=4 clip.short_side=16 clip.multiple=8 lists.carry=[tag]".split()
    job = ("shard", write_list(tmp_path, "jsonl"), "--out", tmp_path / "clips", *settings, "filters.duplicates=false")
    assert vidvq(*job, *INLINE).code == 0
    assert tokenize(tmp_path / "clips", "where=carried.tag = 'y'").code == 0
    assert [key[0] for key in outcomes(tmp_path / "tokens")[0]] == ["b"]
    error = tokenize(tmp_path / "clips", "where=carried.tagg = 'y'", out="other").error
    assert "there is no column carried.tagg; did you mean carried.tag?" in error


def test_where_is_text_whatever_yaml_makes_of_it():
    from vidvq import config

    settings = config.apply_overrides({}, ["where=tag = 'a: b' # c", 'data.where="x" = y', "lists.where=null"])
    assert settings == {"where": "tag = 'a: b' # c", "data": {"where": '"x" = y'}, "lists": {"where": None}}
