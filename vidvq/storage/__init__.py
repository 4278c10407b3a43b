"""Writes that either happen whole or not at all, on a disk or in an object store, and hashes of what was written."""

from vidvq.storage.files import (
    attempt_file,
    attempt_path,
    canonical_json,
    create_once,
    differences,
    make_folder,
    pretty_json,
    publish_once,
    publish_over,
    read_json,
    remove_attempts,
    sha256_bytes,
    sha256_file,
    sync_folder,
    write_atomic,
    write_over,
)
from vidvq.storage.objects import is_remote, place, read_range, refuse_unwritable

__all__ = [
    "attempt_file",
    "attempt_path",
    "canonical_json",
    "create_once",
    "differences",
    "is_remote",
    "make_folder",
    "place",
    "pretty_json",
    "publish_once",
    "publish_over",
    "read_json",
    "read_range",
    "refuse_unwritable",
    "remove_attempts",
    "sha256_bytes",
    "sha256_file",
    "sync_folder",
    "write_atomic",
    "write_over",
]
