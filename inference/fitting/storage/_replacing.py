"""Files that are the old one or the new one, and never half of either."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A temporary file in the same folder, renamed at the end.

    Links are followed. The mode is that of the file that was there, else the umask's. The temporary file has one name for each
    path, so that what a killed process leaves is overwritten by the next one; of two that write at the same time one waits.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    with _told(path):
        target, temporary = _places(path)
        with _alone(temporary) as file:
            try:
                with contextlib.suppress(OSError):  # there is none, or the mode is not ours to set
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:  # renamed while the lock is held
                    os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        if fcntl is None:
            os.replace(temporary, target)


def check_writable(path: str | os.PathLike) -> None:
    """Make the file's folder, if need be, and see whether a file can be written there.

    Raises:
        OSError: it cannot.
    """
    with _told(path):
        target, temporary = _places(path)
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(temporary):
            temporary.unlink()


@contextlib.contextmanager
def _told(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise type(err)(
            f"'{os.fspath(path)}' could not be written: {err.strerror or err}. What was there before is unchanged. Make room, or "
            "choose a path that can be written."
        ) from err


def _places(path: str | os.PathLike) -> tuple[Path, Path]:
    """The file, and the temporary one beside it."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        number = errno.EISDIR if target.is_dir() else errno.ENODEV
        raise OSError(number, os.strerror(number))
    return target, target.with_name(f".{target.name}.lapilli-tmp")


def _alone(temporary: Path) -> IO[bytes]:
    """The file opened for writing, by no other process at the same time."""
    while True:
        handle = os.open(temporary, _FLAGS, 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, temporary):
                os.ftruncate(handle, 0)
                return os.fdopen(handle, "wb")
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # another process has renamed it in the meantime


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
