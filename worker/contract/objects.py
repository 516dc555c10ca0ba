"""Read and write objects of an S3-compatible bucket.

The client is obstore. Endpoint, region and credentials come from the `AWS_*` variables, or from the
role of the machine. Every object is sent with its SHA-256, which the server checks. A request is
retried for some seconds after an error of the server or the network, and then raises
`BucketUnavailable`; jobs are retried after it.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    PreconditionError,
)
from obstore.store import S3Store

from model.domain.errors import ConfigurationError
from worker.contract.buckets import BucketUnavailable, StoredObject

__all__ = ["Bucket"]

_CHUNK = 4 << 20
_HEALTH_SECONDS = 5.0
"""Seconds for which the answer of `problem` is cached."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_QUICK: Mapping[str, Any] = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}
_PATIENT: Mapping[str, Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}


class Bucket:
    """The objects below one prefix of a bucket; safe to use from several threads, not across forks.

    Arguments:
        url: Such as `s3://bucket/prefix`.
        connect_seconds: Timeout of a connection.
        answer_seconds: Timeout of one request with its body, of a few MiB.

    Raises:
        ConfigurationError: If the address or the variables are not understood.
    """

    def __init__(
        self, url: str, *, connect_seconds: float = 5.0, answer_seconds: float = 60.0
    ) -> None:
        place = urlsplit(url)
        self.url = url
        endpoint = _endpoint()

        def connect(retries: Mapping[str, Any], seconds: float) -> S3Store:
            client = {
                "connect_timeout": timedelta(seconds=connect_seconds),
                "timeout": timedelta(seconds=seconds),
                "allow_http": endpoint.startswith("http://"),
            }
            given: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
            return S3Store(
                place.netloc,
                prefix=place.path.strip("/") or None,
                client_options=client,  # type: ignore[arg-type]
                retry_config=retries,  # type: ignore[arg-type]
                checksum_algorithm="SHA256",
                conditional_put="etag",
                **given,
            )

        try:
            self._patient = connect(_PATIENT, answer_seconds)
            self._quick = connect(_QUICK, min(10.0, answer_seconds))
            self._health = (float("-inf"), "")
        except (BaseError, ValueError) as error:
            raise ConfigurationError(
                f"Expected {url} and AWS_* variables of a bucket; {_first_line(error)}"
            ) from error

    # -- writing

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that does not exist yet; return False if it does (`If-None-Match: *`)."""
        with self._answers(exists=True):
            try:
                self._patient.put(name, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Replace an object, unless somebody else changes it meanwhile (`If-Match`).

        Raises:
            FileNotFoundError: If it does not exist.
            BucketUnavailable: If somebody did; retry.
        """
        with self._answers():
            tag = self._patient.head(name)["e_tag"]
            self._patient.put(name, content, mode={"e_tag": tag} if tag else "overwrite")

    def swap(self, name: str, content: bytes, tag: str) -> bool:
        """Replace an object if it still has the entity tag `tag`; return whether it had."""
        with self._answers():
            try:
                self._patient.put(name, content, mode={"e_tag": tag})
            except PreconditionError:
                return False
        return True

    def send(self, content: Path | bytes, name: str) -> None:
        """Write a file or bytes to an object, overwriting it; large ones by multipart upload."""
        with self._answers(exists=True):
            self._patient.put(name, content)

    def delete(self, names: list[str]) -> None:
        """Delete objects; one that does not exist is no error."""
        with self._answers(), suppress(FileNotFoundError):
            if names:
                self._patient.delete(names)

    # -- reading

    def read(self, name: str) -> bytes:
        """Return the content of a small object.

        Raises:
            FileNotFoundError: If there is none.
        """
        with self._answers():
            return bytes(self._quick.get(name).bytes())

    def read_changed(self, name: str, tag: str) -> tuple[bytes, str] | None:
        """Return the content and the tag of a small object; None if it still has `tag`.

        Raises:
            FileNotFoundError: If there is none.
        """
        with self._answers():
            try:
                options = {"if_none_match": tag} if tag else {}
                answer = self._quick.get(name, options=options)  # type: ignore[arg-type]
                return bytes(answer.bytes()), str(answer.meta["e_tag"])
            except NotModifiedError:
                return None

    def stream(self, name: str, first: int, last: int) -> Iterator[bytes]:
        """Return the bytes `first` to `last`, both included, as a stream.

        Raises:
            FileNotFoundError: If there is no such object; before anything is returned.
        """
        if last < first:
            return iter(())
        start = self._part(name, first, last)
        return self._rest(name, start, first, last)

    def _part(self, name: str, first: int, last: int) -> bytes:
        with self._answers():
            end = min(last + 1, first + _CHUNK)
            return bytes(self._patient.get_range(name, start=first, end=end))

    def _rest(self, name: str, part: bytes, first: int, last: int) -> Iterator[bytes]:
        """Yield part after part, one request each, so that a slow reader holds no request open."""
        yield part
        while (first := first + len(part)) <= last:
            part = self._part(name, first, last)
            yield part

    def content(self, name: str) -> Iterator[bytes]:
        """Yield all bytes of an object, a part at a time.

        Raises:
            FileNotFoundError: If there is none; when the first part is asked for.
        """
        with self._answers():
            answer = self._patient.get(name, options={"range": (0, _CHUNK)})
            part, size = bytes(answer.bytes()), int(answer.meta["size"])
        yield from self._rest(name, part, 0, size - 1)

    def stat(self, name: str) -> StoredObject:
        """Return the size and time of an object.

        Raises:
            FileNotFoundError: If there is none.
        """
        with self._answers():
            return _described(self._quick.head(name))

    def children(self, prefix: str) -> list[str]:
        """Return the names of the folders and objects in the folder `prefix`, sorted."""
        with self._answers(exists=True):
            found = self._quick.list_with_delimiter(prefix or None)
        names = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in names)

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in the folder `prefix`, sorted."""
        with self._answers(exists=True):
            found = self._quick.list_with_delimiter(prefix)["common_prefixes"]
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose names begin with `prefix`, a whole folder's name."""
        with self._answers(exists=True):
            for page in self._quick.list(prefix):
                yield from map(_described, page)

    # -- what it can do

    def problem(self) -> str:
        """Return why the bucket cannot be read; empty if it can. Cached for some seconds."""
        asked, found = self._health
        if time.monotonic() - asked > _HEALTH_SECONDS:
            found = ""
            try:
                next(self.list("checks"), None)
            except BucketUnavailable as error:
                found = error.message
            self._health = (time.monotonic(), found)
        return found

    def faults(self) -> Iterator[tuple[str, str]]:
        """Check the guarantees that publication relies on with a temporary object.

        Yields:
            Each guarantee and what is wrong; empty if it holds.
        """
        name = f"checks/{secrets.token_hex(8)}"
        tests: dict[str, Callable[[], str]] = {
            "an object is created once": lambda: self._created_once(name),
            "another's change is not overwritten": lambda: self._changed_once(name),
            "bytes from the middle": lambda: self._read_in_part(name),
            "listed at once": lambda: self._listed(name),
        }
        for promise, test in tests.items():
            try:
                yield promise, test()
            except (BucketUnavailable, OSError) as error:
                yield promise, str(error)
        self.delete([name])

    def _created_once(self, name: str) -> str:
        if not self.create(name, b"first"):
            return "a new object was taken for one that exists"
        if self.create(name, b"second") or self.read(name) != b"first":
            return "If-None-Match: * was ignored: the second writer replaced the first"
        return ""

    def _changed_once(self, name: str) -> str:
        with self._answers():
            try:
                self._quick.put(name, b"other", mode={"e_tag": '"0"'})
            except PreconditionError:
                return ""
        return "If-Match was ignored"

    def _read_in_part(self, name: str) -> str:
        got = b"".join(self.stream(name, 1, 2))
        return "" if got == b"ir" else f"expected bytes 1-2 of 'first'; got {got!r}"

    def _listed(self, name: str) -> str:
        found = any(one.name == name for one in self.list("checks"))
        return "" if found else "an object that was just written is not listed"

    @contextmanager
    def _answers(self, *, exists: bool = False) -> Iterator[None]:
        """Turn the client's errors into ours; a missing object stays `FileNotFoundError`.

        Arguments:
            exists: Whether the request needs no object, so that "not found" means the bucket.
        """
        try:
            yield
        except BaseError as error:
            raise self._unavailable(error) from error
        except FileNotFoundError as error:
            if not exists:
                raise
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> BucketUnavailable:
        return BucketUnavailable(
            f"Expected the bucket {self.url} to answer; {_first_line(error)}", url=self.url
        )


def _endpoint() -> str:
    """Return the address of the server that the environment names; empty: that of AWS.

    Empty variables, which compose files produce, are removed: the client would use them as values.

    Raises:
        ConfigurationError: If it is no address.
    """
    for name in [
        name for name, value in os.environ.items() if name.startswith("AWS_") and not value
    ]:
        del os.environ[name]
    name = next((name for name in _ENDPOINTS if name in os.environ), "")
    endpoint = os.environ.get(name, "")
    if name and not urlsplit(endpoint).netloc:
        raise ConfigurationError(
            f"Expected {name} such as https://s3.example.org; got '{endpoint}'."
        )
    return endpoint


def _described(meta: Any) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["last_modified"])


def _first_line(error: BaseException) -> str:
    """Return the message of an error, without debugging output of the client and the XML response."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(": <?xml")[0][:300]
