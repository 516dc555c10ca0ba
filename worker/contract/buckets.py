"""Open the buckets of an installation, and define the error of an unavailable one.

Results, and uploads as they were received, may each lie in an S3-compatible bucket instead of the
data folder. The client (`worker.contract.objects`) is of the extra `objects` and is loaded only
where an address is set.
"""

import importlib
import os
import threading
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from model.domain.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from worker.contract.objects import Bucket

__all__ = ["BucketUnavailable", "StoredObject", "open_bucket"]


class BucketUnavailable(StorageError):
    """A bucket does not respond, or refuses the request; a retry may succeed."""


@dataclass(frozen=True)
class StoredObject:
    """An object as the bucket lists it.

    Attributes:
        name: Below the prefix.
        size: Bytes.
        written: When it was last written, by the server's clock (UTC).
    """

    name: str
    size: int
    written: datetime


_opening = threading.Lock()


def open_bucket(url: str) -> "Bucket":
    """Return the client of what lies below `url`, `s3://bucket/prefix`; one for each process.

    Raises:
        ConfigurationError: If the extra `objects` is not installed, or the address or the `AWS_*`
            variables are not understood.
    """
    with _opening:
        return _open(url, os.getpid())


@lru_cache(maxsize=8)
def _open(url: str, process: int) -> "Bucket":
    """Open a bucket; its client does not survive a fork."""
    try:
        module = importlib.import_module("worker.contract.objects")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Expected the extra 'objects' for what lies in {url}; the module '{error.name}' is "
            "missing. Install it with: pip install 'appa-service[objects]'"
        ) from error
    bucket: Bucket = module.Bucket(url)
    return bucket
