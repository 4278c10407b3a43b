"""Reasons for which items fail, without their detail in brackets."""

# Functions and stages of users add their own.
FAILURES = frozenset(
    {
        "bad_name",
        "bad_prompt",
        "bad_range",
        "bad_sidecar",
        "changed_since_plan",
        "damaged",
        "decode_error",
        "decoder_died",
        "empty_file",
        "encrypted",
        "fetch_failed",
        "function_died",
        "function_error",
        "hdr",
        "killed",
        "missing",
        "no_video_stream",
        "not_a_file",
        "not_a_video",
        "not_allowed",
        "not_as_shown",
        "not_copyable",
        "not_on_keyframes",
        "out_of_memory",
        "too_large",
        "too_slow",
        "torn_tar",
        "truncated",
        "unexpected",
        "unknown_codec",
        "unreadable",
        "unsupported_colour",
    }
)


def kind_of(reason: str) -> str:
    """The reason without its detail: ``fetch_failed`` of ``fetch_failed(403)``."""
    return reason.partition("(")[0]
