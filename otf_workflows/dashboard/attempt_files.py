"""The files that one try at a label left behind, where this machine sees the same disk.

Only the folder named in the label's document is looked at, only plain files in it, and only the
end of those whose names are inputs, outputs and logs of DFT codes and queues.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from otf_workflows.errors import NotFoundError

MOST_FILES = 200
SHOWN_BYTES = 64 * 1024

_READABLE = re.compile(
    r"(INCAR|KPOINTS|POSCAR|CONTCAR|OUTCAR|OSZICAR|CRASH|FW_submit\.script"
    r"|\w[\w.+-]*\.(in|inp|out|abi|abo|err|error|log|txt|json|ya?ml|xyz|extxyz|cif|sh|script))"
    r"(\.gz)?"
)


@dataclass(frozen=True)
class FoundFile:
    """A file in the folder of a try.

    Attributes
    ----------
    name
        Its name.
    size_bytes
        Its size.
    modified
        When it was last written.
    readable
        Whether its end may be shown.
    """

    name: str
    size_bytes: int
    modified: datetime
    readable: bool


def found_files(directory: str) -> list[FoundFile]:
    """Return the plain files of a folder, those written last first; links are left out.

    Raises
    ------
    NotFoundError
        If this machine does not see the folder.
    """
    try:
        with os.scandir(directory) as entries:
            plain = [
                (entry.name, entry.stat(follow_symlinks=False))
                for entry in entries
                if entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError as error:
        raise NotFoundError(
            f"this machine cannot look into the folder: {error.strerror}", where=directory
        ) from error
    files = [
        FoundFile(
            name=name,
            size_bytes=info.st_size,
            modified=datetime.fromtimestamp(info.st_mtime, UTC),
            readable=is_readable(name),
        )
        for name, info in plain
    ]
    return sorted(files, key=lambda file: file.modified, reverse=True)[:MOST_FILES]


def is_readable(name: str) -> bool:
    """Tell whether a file of this name may be shown: text that a calculation reads or writes."""
    return _READABLE.fullmatch(name) is not None and not name.endswith(".gz")


def end_of_file(directory: str, name: str) -> str:
    """Return the end of a file, at most :data:`SHOWN_BYTES` of it.

    Parameters
    ----------
    directory
        Folder of the try.
    name
        Name of a file in it, without any path.

    Raises
    ------
    NotFoundError
        If there is no such file, or it is not one that may be shown.
    """
    if not is_readable(name):
        raise NotFoundError("this file is not shown here", where=f"{directory}: {name[:100]}")
    # A name that became a link, or a pipe, in the meantime is neither followed nor waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(Path(directory) / name, flags)
    except OSError as error:
        raise NotFoundError(f"it cannot be read: {error.strerror}", where=directory) from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise NotFoundError("this is no plain file", where=directory)
        content = os.pread(descriptor, SHOWN_BYTES, max(info.st_size - SHOWN_BYTES, 0))
    finally:
        os.close(descriptor)
    if b"\0" in content:
        raise NotFoundError("this file is not text", where=directory)
    return content.decode("utf-8", errors="replace")
