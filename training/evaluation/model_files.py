"""Names for models by what is in them: two files of one name differ, one file in two places does not.

Weights that are in memory are hashed. Of weights that are not loaded yet, small files are hashed, and of large ones
size and time of change are taken: reading 24 GB would take longer than the work that the name may save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .folder import file_hash, fingerprint

_HASHED_UP_TO_BYTES = 64 * 2**20


def tensors_key(tensors: Iterable[Tensor], *settings: str) -> str:
    """Return 8 hex digits over the content of tensors, in order, and words about their use."""
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]


def model_key(place: str | Path | None) -> str | None:
    """Return a name for a model file or folder by its content; a Hugging Face id, or None, stays what it is."""
    if place is None:
        return None
    path = Path(place)
    if path.is_file():
        return _file_key(path)
    if not path.is_dir():
        return str(place)
    files = sorted(found for found in path.rglob("*") if found.is_file())
    names = [(found, found.relative_to(path).as_posix()) for found in files]
    return fingerprint([(name, _file_key(found)) for found, name in names if not f"/{name}".count("/.")])


def _file_key(path: Path) -> str:
    facts = path.stat()
    if facts.st_size <= _HASHED_UP_TO_BYTES:
        return file_hash(path)
    return f"{facts.st_size}:{facts.st_mtime_ns}"
