"""WebDataset tars: a deterministic writer, and a reader for untrusted files."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, NamedTuple, TypeAlias
from zlib import crc32

from pydantic import AfterValidator, Field

from vidvq.errors import UsageError
from vidvq.storage import check_name

BLOCK_BYTES = 512
# A tar ends with two empty blocks, and is padded to a multiple of 20 blocks.
END_BYTES, RECORD_BYTES = 2 * BLOCK_BYTES, 20 * BLOCK_BYTES
MAX_MEMBERS = 10_000_000
MAX_MEMBER_BYTES = 16 << 30
_MAX_NAME = 100  # what a ustar header holds without a prefix
# Headers with a content of their own: long names of GNU, and records of POSIX.
_EXTENSIONS = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X"})
_MAX_EXTENSION_BYTES = 1 << 20
# Of a header of POSIX, and of GNU tar.
_MAGICS = frozenset({b"ustar\x0000", b"ustar  \0"})
# What the size field of ustar holds.
_MAX_SIZE = 8**11 - 1
# Beyond the largest file of common file systems, but not beyond what they can seek to.
_MAX_HEADER_SIZE = 1 << 42


def check_member(name: str) -> str:
    """Check a member name that could escape a folder or confuse a reader, and return it.

    Raises:
        UsageError: see :func:`vidvq.storage.check_name`; at most 100 bytes are allowed.
    """
    return check_name(name, "tar member", _MAX_NAME)


MemberName: TypeAlias = Annotated[str, AfterValidator(check_member)]


class Member(NamedTuple):
    """One file in a tar.

    Attributes:
        name: file name.
        size: size of its content (bytes).
        crc32: CRC-32 of its content.
    """

    name: MemberName
    size: Annotated[int, Field(ge=0)]
    crc32: Annotated[int, Field(ge=0, lt=1 << 32)]

    @property
    def key(self) -> str:
        """The WebDataset key: the name up to its first dot."""
        return self.name.partition(".")[0]


class TarWriter:
    """Writes members in the order given: ustar, mtime 0, owner 0, mode 0644, no user names.

    A member takes a tenth of the time of ``tarfile``, which would be longer than a GPU takes to encode its clip.

    Args:
        file: receives the tar.

    Attributes:
        members: members written until now.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self._bytes = 0
        self.members: list[Member] = []
        self._names: set[str] = set()

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written until now (hex)."""
        return self._sha256.hexdigest()

    def add(self, name: str, data: bytes) -> None:
        """Append one member.

        Raises:
            UsageError: the name is not safe, or is already in the tar, or the content is too large for a tar.
        """
        check_member(name)
        if name in self._names:
            raise UsageError(f"tar member {name!r} is already in the tar; keys must be unique")
        if len(data) > _MAX_SIZE:
            raise UsageError(f"tar member {name!r} has {len(data)} bytes; at most {_MAX_SIZE} are allowed")
        self._names.add(name)
        self._write(_header(name, len(data)))
        self._write(data)
        self._write(bytes(-len(data) % BLOCK_BYTES))
        self.members.append(Member(name, len(data), crc32(data)))

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self._write(bytes(END_BYTES + -(self._bytes + END_BYTES) % RECORD_BYTES))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)


def read_members(path: Path, max_member_bytes: int = MAX_MEMBER_BYTES) -> Iterator[tuple[str, bytes]]:
    """Yield ``(name, content)`` in file order, with one member in memory at a time.

    Raises:
        UsageError: the file is not a tar, or has a member that is not a regular file, has an unsafe or repeated name,
            or exceeds the size limit.
    """
    names: set[str] = set()

    def accept(name: str, size: int) -> None:
        check_member(name)
        if name in names:
            raise UsageError(f"{path}: member {name!r} occurs twice")
        if size > max_member_bytes or len(names) >= MAX_MEMBERS:
            raise UsageError(f"{path}: member {name!r} exceeds the limits on size or count")
        names.add(name)

    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)

        def content(name: str, size: int) -> tuple[str, bytes]:
            accept(name, size)
            # A buffer is allocated for the size that is asked for, not for what is there.
            if size > end - file.tell():
                raise UsageError(f"{path}: ends inside member {name!r}; the file is torn")
            return name, file.read(size)

        # Plain headers are parsed here, which is several times faster. From the first other header on, tarfile reads.
        while plain := parse_header(header := file.read(BLOCK_BYTES)):
            name, size = plain
            yield content(name, size)
            file.seek(-size % BLOCK_BYTES, 1)
        file.seek(-len(header), 1)
        try:
            for info in read_headers(file):
                if not is_plain(info):
                    raise UsageError(f"{path}: member {info.name!r} is not a regular file")
                yield content(info.name, info.size)
        except tarfile.TarError as error:
            raise UsageError(f"{path} is not a readable tar: {error}") from error


class _Header(tarfile.TarInfo):
    """A header whose extensions are bounded: tarfile reads them into memory, whatever size they claim."""

    # The entry point of all versions of Python that subclasses may override; newer ones do not call `frombuf`.
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENSIONS and not 0 <= self.size <= _MAX_EXTENSION_BYTES:
            raise tarfile.HeaderError(f"an extended header has {self.size} bytes; at most {_MAX_EXTENSION_BYTES}")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _block(self, count: int) -> int:
        # Newer versions of Python take a size below 0 in an extended header for the end of the tar.
        if count < 0:
            raise ValueError(f"a size of {count} bytes")
        return super()._block(count)  # type: ignore[misc]


def read_headers(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member of an untrusted tar, from the position of the file to the end of the tar.

    The content of a plain member (:func:`is_plain`) begins at the position of the file, which may be changed.

    Raises:
        tarfile.TarError: a header is damaged, or the blocks that end a tar are missing.
    """
    tar: tarfile.TarFile | None = None
    while True:
        try:
            tar = tar or tarfile.open(fileobj=file, mode="r:", encoding="utf-8", tarinfo=_Header)
            header = tar.next()
        except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
            # tarfile lets these through from the records of POSIX, sparse maps, and chains of extended headers.
            raise tarfile.ReadError(f"damaged header: {' '.join(str(error).split())[:80]}") from error
        if header is None:
            break
        # tarfile keeps every header it saw; tars may have many.
        tar.members = []  # type: ignore[attr-defined]
        if not 0 <= header.size <= _MAX_HEADER_SIZE:
            raise tarfile.ReadError(f"member {header.name[:_MAX_NAME]!r} has a size of {header.size} bytes")
        yield header
    # tarfile takes a damaged header for the end, and the end of the file too.
    file.seek(tar.offset)  # type: ignore[attr-defined]
    end = file.read(BLOCK_BYTES)
    if len(end) < BLOCK_BYTES or any(end):
        found = "no header" if end else "no end of the archive"
        raise tarfile.ReadError(f"{found} at byte {tar.offset}")  # type: ignore[attr-defined]


def is_plain(header: tarfile.TarInfo) -> bool:
    """Whether a member is a regular file that is stored as it is, not sparse."""
    return header.isreg() and not header.issparse()


def parse_header(block: bytes) -> tuple[str, int] | None:
    """Name and size of a regular file in a header of POSIX or GNU, without a prefix; None for anything else."""
    if len(block) != BLOCK_BYTES or block[257:265] not in _MAGICS or block[156:157] != b"0" or block[345] != 0:
        return None
    size, checksum = block[124:136].rstrip(b"\0 "), block[148:156].strip(b"\0 ")
    if not size.isdigit() or not checksum.isdigit():
        return None
    try:
        # The checksum field itself counts as spaces.
        if int(checksum, 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            return None
        return block[:100].partition(b"\0")[0].decode(), int(size, 8)
    except ValueError:
        return None


def read_samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield ``(key, {extension: content})``, grouping consecutive members by key as WebDataset does."""
    key: str | None = None
    sample: dict[str, bytes] = {}
    for name, data in read_members(path):
        stem, _, extension = name.partition(".")
        if stem != key:
            if key is not None:
                yield key, sample
            key, sample = stem, {}
        sample[extension] = data
    if key is not None:
        yield key, sample


def find_damage(path: Path, members: list[Member]) -> list[str]:
    """Compare a tar, including headers and padding, with the members in its commit record.

    Returns:
        One line per difference, naming the member; empty if there is none.
    """
    problems: list[str] = []
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        for member in members:
            # A buffer is allocated for the size that is asked for, not for what is there.
            if BLOCK_BYTES + member.size > end - file.tell():
                problems.append(f"{member.name}: the file ends before it")
                return problems
            header, content = file.read(BLOCK_BYTES), file.read(member.size)
            padding = file.read(-member.size % BLOCK_BYTES)
            if header != _header(member.name, member.size):
                problems.append(f"{member.name}: its tar header was changed")
            if crc32(content) != member.crc32:
                problems.append(f"{member.name}: its content was changed")
            if any(padding):
                problems.append(f"{member.name}: the padding after it was changed")
        # A tar has no more; the size of the file is compared elsewhere.
        rest = file.read(END_BYTES + RECORD_BYTES)
        if any(rest) or len(rest) < END_BYTES:
            problems.append("the end of the archive was changed")
    return problems


def _header(name: str, size: int) -> bytes:
    """The header of a member, as ``tarfile`` writes it."""
    block, encoded = bytearray(_EMPTY_HEADER), name.encode()
    block[: len(encoded)] = encoded
    block[124:135] = b"%011o" % size
    # The checksum field itself counts as spaces.
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def _empty_header() -> bytes:
    info = tarfile.TarInfo()
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


_EMPTY_HEADER = _empty_header()
