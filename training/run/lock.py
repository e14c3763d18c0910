"""A lock on the run folder: it names host and process, and the system releases it when the process ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lorweb_core.errors import OutputError


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `run.lock` in a run's folder, which is created if needed.

    Raises OutputError when another process has it, or may have it on another host, or the folder cannot be written.
    """
    path, own_host = folder / "run.lock", socket.gethostname()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(
            f"The run's folder {folder} cannot be written: {error.strerror or error}. Set run.folder to a writable "
            "folder with enough space for the checkpoints."
        ) from error
    with file:
        file.seek(0)
        host, _, pid = file.read(300).strip().rpartition(" ")
        if not _lock(file, pid):
            raise OutputError(
                f"Process {pid or '?'} on host {host or '?'} is training in {folder}. Wait for it or stop it, or "
                "choose another run.name."
            )
        if host not in ("", own_host):  # not every network file system shows the locks of other hosts
            raise OutputError(
                f"Process {pid} on host {host} is training in {folder}, or was killed. If it is no longer running, "
                f"delete {path} and start again; otherwise choose another run.name."
            )
        file.truncate(0)
        file.write(f"{own_host} {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: TextIO, pid: str) -> bool:
    """Lock a file; returns whether no other process holds it.

    On file systems without locks it counts whether process `pid`, the last to lock it, is alive on this host.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 20)  # beyond the text, which others must be able to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept by processes that load images
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN) and not _is_alive(pid)
    return True


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
