"""What a file is, by its first bytes: containers by name, everything else refused."""

import pytest

from vidvq.video import VideoError
from vidvq.video.container import container_format, sniff

TS = (b"\x47" + b"\xff" * 187) * 5
M2TS = (b"\0\0\0\0\x47" + b"\xff" * 187) * 5


@pytest.mark.parametrize(
    ("head", "demuxer"),
    [
        (b"\0\0\0\x20ftypisom", "mov"),
        (b"\0\0\0\x20ftypqt  ", "mov"),
        (b"\0\0\x10\0moov", "mov"),
        (b"\0\0\x10\0mdat", "mov"),
        (b"\0\0\0\x08wide", "mov"),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0", "matroska"),
        (b"RIFF\x10\0\0\0AVI LIST", "avi"),
        (b"FLV\x01\x05", "flv"),
        (b"OggS\0\x02", "ogg"),
        (b"\0\0\x01\xba\x44", "mpeg"),
        (b"\0\0\x01\xb3\x14", "mpegvideo"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6", "asf"),
        (TS, "mpegts"),
        (M2TS, "mpegts"),
        (TS[100:], "mpegts"),
        (b"GIF89a", "gif"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + bytes(17) + b"\0\0\0\x08acTL", "apng"),
        (b"YUV4MPEG2 W8 H8", "yuv4mpegpipe"),
        (b"DKIF\0\0\x20\0VP80", "ivf"),
        (b"\x12\0\x0a\x0b", "obu"),
        (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "mxf"),
        (b"\x1f\x07\0\xbf", "dv"),
        (b"nut/multimedia container\0", "nut"),
        (b".RMF\0", "rm"),
        (b"\0\0\0\x01\x67\x64", "h264"),
        (b"\0\0\x01\x09\x10", "h264"),
        (b"\0\0\0\x01\x06\x05", "h264"),
        (b"\0\0\0\x01\x40\x01", "hevc"),
        (b"\0\0\x01\xb0\x01", "m4v"),
        (b"\0\0\x01\x0f", "vc1"),
    ],
)
def test_a_container_is_known_by_its_magic(head, demuxer):
    assert sniff(head[:1024]) == demuxer


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"#EXTM3U\n#EXT-X-VERSION:3\nhttp://169.254.169.254/latest\n",
        b"\xef\xbb\xbf#EXTM3U\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"file '/etc/passwd'\n",
        b"<?xml version='1.0'?><MPD/>",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"ID3\x04",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"PK\x03\x04",
        b"hello, this is text",
        b"G" + b"x" * 187 + b"G" + b"x" * 300,
        b"\0" * 1024,
    ],
)
def test_anything_else_is_refused(head):
    assert sniff(head) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty_file"), (b"#EXTM3U\nhttp://127.0.0.1:9/x.ts\n", "not_a_video"), (b"words", "not_a_video")],
)
def test_a_name_makes_no_video(tmp_path, content, reason):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as error:
        container_format(path)
    assert error.value.reason == reason


def test_a_file_that_is_not_there_is_unreadable(tmp_path):
    with pytest.raises(VideoError, match="unreadable: cannot be opened: No such file"):
        container_format(tmp_path / "gone.mp4")
