"""A disk that is full, for tests of writers."""

from contextlib import contextmanager


@contextmanager
def disk_full_after(byte_count):
    """Let every file of this process end after so many bytes, as on a full disk."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
