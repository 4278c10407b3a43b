"""SHA-256 of bytes and files."""

import hashlib
from pathlib import Path


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, on a disk or in an object store."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
