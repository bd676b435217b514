"""Where a SQLite journal may lie: its URL, its folder, its file system."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import make_url

from bridge.errors import JournalError, JournalUnavailableError

NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "fuse.sshfs",
    "glusterfs",
    "ceph",
    "lustre",
}


def sqlite_path(url: str) -> Path:
    """The file that a `sqlite:///…` URL names. Raises JournalError for other URLs."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise JournalError(f"journal.url {url!r} is not a SQLite file; write sqlite:////absolute/path/journal.db")
    return Path(parsed.database).absolute()


def refuse_network_file_system(path: Path) -> None:
    """Refuse file systems on which SQLite's locks and shared memory are not to be trusted."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    best: tuple[int, str] = (0, "")
    for line in mounts:
        parts = line.split()
        point = parts[1].encode().decode("unicode_escape") if len(parts) > 2 else "/"
        if path.is_relative_to(point) and len(point) >= best[0]:
            best = (len(point), parts[2])
    if best[1] in NETWORK_FILE_SYSTEMS:
        raise JournalError(
            f"the journal {path} lies on a network file system ({best[1]}), where file locks cannot be trusted; "
            "use a local volume, or PostgreSQL"
        )


def check_folder(path: Path) -> None:
    """Raise JournalUnavailableError, with what to change, unless a journal can be made and written here."""
    folder = path.parent
    probe = folder / f".{path.name}.probe"
    try:
        if not folder.is_dir():
            raise JournalUnavailableError(
                f"the journal's folder {folder} does not exist; create or mount it, or change journal.url"
            )
        if path.is_dir():
            raise JournalUnavailableError(f"the journal {path} is a folder; journal.url must name a file")
        probe.write_bytes(b"x")
        probe.unlink()
        if path.exists():
            path.open("r+b").close()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise JournalUnavailableError(
                f"the disk of the journal {path} is full: free space or enlarge its volume"
            ) from error
        raise JournalUnavailableError(
            f"the journal {path} cannot be written: {error.strerror}; mount its volume writable for the user "
            "that runs partner-bridge, or change journal.url"
        ) from error


def file_id(path: Path) -> tuple[int, int] | None:
    """What tells this file from another of the same name; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
