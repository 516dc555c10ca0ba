"""Pull past observations from public archives: list, download and upload files, resumably.

An archive is a tree of files whose names contain their times, on object storage, a web server or a
disk, read through fsspec. A ledger in the data folder lists the finished files; an interrupted download
resumes at the byte where it stopped.

The layouts are those of
- NNJA-AI, the NOAA-NASA Joint Archive as Parquet, https://github.com/brightbandtech/nnja-ai:
  `<sensor>/<source>/<message>/OBS_DATE=YYYY-MM-DD/*.parquet`;
- NNJA itself, NCEP BUFR, https://psl.noaa.gov/data/nnja_obs/:
  `<sensor>/<source>/YYYY/MM/<form>/gdas.YYYYMMDD.tHHz.<source>.*`;
- GDAS, https://registry.opendata.aws/noaa-gfs-bdp-pds/:
  `gdas.YYYYMMDD/HH/atmos/gdas.tHHz.<type>.tm00.bufr_d`, `gdas.tHHz.prepbufr*`;
- observations used by ERA5 as ODB-2, in folders of days: `YYYY/MM/DD/*.odb`. They have no public
  location; users who retrieve them from MARS name their folder.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, TypeVar

import stamina
from fsspec.core import url_to_fs

from model.domain.errors import ConfigurationError, InvalidInput, StorageError
from worker.contract.layout import Layout

__all__ = ["ARCHIVES", "Archive", "PullOutcome", "Pull", "RemoteFile"]

T = TypeVar("T")

_BLOCK = 4 << 20
_TRIES = 5
_ANONYMOUS: Mapping[str, dict[str, Any]] = {"s3": {"anon": True}, "gs": {"token": "anon"}}


@dataclass(frozen=True)
class Archive:
    """Naming scheme of the files of an archive.

    Attributes:
        name: Name on the command line.
        meaning: One line for people.
        root: Address; empty if it has no public location.
        hours: Hours covered by a file.
        patterns: Globs below the root, with `{time:%Y%m%d}` and the like.
        note: Which of its forms this version does not decode; empty if it decodes all.
    """

    name: str
    meaning: str
    root: str
    hours: int
    patterns: tuple[str, ...]
    note: str = ""

    def times(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Yield the times of the files that hold observations from `start` to before `end`.

        Raises:
            InvalidInput: If `end` is not after `start`.
        """
        if end <= start:
            raise InvalidInput(f"Expected END after START ({start}); got {end}.", field="end")
        time = start.replace(hour=start.hour // self.hours * self.hours, minute=0, second=0)
        time = time.replace(microsecond=0)
        while time < end:
            yield time
            time += timedelta(hours=self.hours)


_NCEP = (
    "NCEP BUFR with embedded tables is handed over as it is; what the installed decoders do not "
    "read of it is named at the end."
)
_ALL = (
    Archive(
        "nnja",
        "NNJA-AI: the NOAA-NASA Joint Archive as Parquet, from 2021",
        "gs://gcp-nnja-ai/data/v1",
        24,
        ("*/*/*/OBS_DATE={time:%Y-%m-%d}/*.parquet",),
        "Parquet with columns of NNJA is no observation table; what is not read is named at the end.",
    ),
    Archive(
        "nnja-bufr",
        "NNJA: the NOAA-NASA Joint Archive as NCEP BUFR, from 1979",
        "s3://noaa-reanalyses-pds/observations/reanalysis",
        6,
        ("*/*/{time:%Y}/{time:%m}/*/gdas.{time:%Y%m%d}.t{time:%H}z.*",),
        _NCEP,
    ),
    Archive(
        "gdas",
        "GDAS: observations of the operational global assimilation of NCEP, from 2021",
        "s3://noaa-gfs-bdp-pds",
        6,
        (
            "gdas.{time:%Y%m%d}/{time:%H}/atmos/gdas.t{time:%H}z.*.bufr_d",
            "gdas.{time:%Y%m%d}/{time:%H}/atmos/gdas.t{time:%H}z.prepbufr*",
        ),
        _NCEP,
    ),
    Archive(
        "era5-obs",
        "observations used by ERA5, as ODB-2 retrieved from MARS",
        "",
        24,
        ("{time:%Y}/{time:%m}/{time:%d}/*.odb*",),
    ),
)
ARCHIVES: Mapping[str, Archive] = {archive.name: archive for archive in _ALL}


@dataclass(frozen=True)
class RemoteFile:
    """A file of an archive.

    Attributes:
        path: Path in its file system.
        relative: Path below the root.
        size: Bytes.
        version: Entity tag or similar, which changes with the content, if the file system has one.
    """

    path: str
    relative: str
    size: int
    version: str

    @property
    def key(self) -> str:
        """Return its key in the ledger."""
        return f"{self.path}|{self.size}|{self.version}"


@dataclass(frozen=True)
class PullOutcome:
    """Result of pulling a file: its state, rows stored and reason.

    Attributes:
        key: See `RemoteFile.key`.
        file: Below the root.
        state: `ingested`, `rejected`, `failed`, or `not_decoded` where no decoder knows the form.
        rows: Number of values stored.
        detail: Why it was not ingested.
        batch: Id of the upload.
    """

    key: str
    file: str
    state: str
    rows: int = 0
    detail: str = ""
    batch: str = ""

    @property
    def ended(self) -> bool:
        """Return whether the file need not be pulled again."""
        return self.state in ("ingested", "rejected")


class Receiver(Protocol):
    """Destination of pulled files: a running system."""

    def send(self, path: Path) -> str | None:
        """Upload a file and return its batch; None if its format is not known."""

    def outcome(self, batch: str) -> tuple[str, int, str]:
        """Wait for the end of an upload; return its state, the number of values stored, and the reason."""


OnFile = Callable[[RemoteFile, int], None]
"""Called with a file and the number of bytes downloaded so far."""


@dataclass
class Pull:
    """Pull the files of a period from an archive.

    Attributes:
        archive: Naming scheme of the files.
        root: Address of the archive.
        layout: The data folder, for the ledger and partial downloads.
        only: Globs, one of which the path of a file below the root must match; all if empty.
        ahead: Maximum number of uploads that wait for ingest before the pull pauses.
        options: Options of the file system; anonymous access if absent.
    """

    archive: Archive
    root: str
    layout: Layout
    only: tuple[str, ...] = ()
    ahead: int = 8
    options: Mapping[str, Any] | None = None
    _known: dict[str, PullOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Connect to the file system and read the ledger.

        Raises:
            ConfigurationError: If the root is missing, or needs a package that is not installed.
        """
        if not self.root:
            raise ConfigurationError(
                f"Expected --root: the archive '{self.archive.name}' has no public home."
            )
        scheme = self.root.partition("://")[0] if "://" in self.root else "file"
        options = _ANONYMOUS.get(scheme, {}) if self.options is None else self.options
        try:
            self._fs, self._base = url_to_fs(self.root, **options)
        except ImportError as error:
            raise ConfigurationError(
                f"Reading {scheme}:// needs the extra 'archives'; install it with: "
                "pip install 'appa-service[archives]'"
            ) from error
        except ValueError as error:
            raise ConfigurationError(f"Expected a root that fsspec reads; {error}.") from error
        self._base = self._base.rstrip("/")
        self._ledger = self.layout.pulls / f"{self.archive.name}.jsonl"
        _end_line(self._ledger)
        self._known = {outcome.key: outcome for outcome in _read(self._ledger)}

    def files(self, start: datetime, end: datetime) -> list[RemoteFile]:
        """Return the files of a period, in the order of their times.

        Raises:
            StorageError: If the archive cannot be listed.
        """
        found: dict[str, RemoteFile] = {}
        for time in self.archive.times(start, end):
            for pattern in self.archive.patterns:
                for path, about in self._list(pattern.format(time=time)):
                    file = self._described(path, about)
                    if not self.only or any(fnmatch(file.relative, glob) for glob in self.only):
                        found.setdefault(path, file)
        return list(found.values())

    def left(self, files: list[RemoteFile]) -> list[RemoteFile]:
        """Return those of `files` that no earlier pull has finished."""
        return [f for f in files if f.key not in self._known or not self._known[f.key].ended]

    def run(
        self, files: list[RemoteFile], receiver: Receiver, on_file: OnFile
    ) -> Iterator[PullOutcome]:
        """Pull `files`, and yield the outcome of each as soon as it is known.

        Raises:
            StorageError: If a file cannot be read after several tries; run the pull again later.
        """
        waiting: deque[tuple[RemoteFile, str]] = deque()
        for file in files:
            local = self._download(file, on_file)
            batch = receiver.send(local)
            shutil.rmtree(local.parent)
            if batch is None:
                yield self._note(file, "not_decoded", 0, "no decoder knows its form", "")
            else:
                waiting.append((file, batch))
            if len(waiting) >= self.ahead:
                yield self._settle(*waiting.popleft(), receiver)
        while waiting:
            yield self._settle(*waiting.popleft(), receiver)

    def _settle(self, file: RemoteFile, batch: str, receiver: Receiver) -> PullOutcome:
        state, rows, detail = receiver.outcome(batch)
        return self._note(file, state, rows, detail, batch)

    def _note(
        self, file: RemoteFile, state: str, rows: int, detail: str, batch: str
    ) -> PullOutcome:
        outcome = PullOutcome(file.key, file.relative, state, rows, detail, batch)
        self._known[file.key] = outcome
        self._ledger.parent.mkdir(parents=True, exist_ok=True)
        with self._ledger.open("a") as ledger:
            ledger.write(json.dumps(asdict(outcome)) + "\n")
        return outcome

    # -- the file system

    def _list(self, pattern: str) -> list[tuple[str, dict[str, Any]]]:
        def listed() -> Mapping[str, dict[str, Any]]:
            found: Mapping[str, dict[str, Any]] = self._fs.glob(
                f"{self._base}/{pattern}", detail=True
            )
            return found

        return sorted(_tried(listed, f"list '{self.root}'").items())

    def _described(self, path: str, about: Mapping[str, Any]) -> RemoteFile:
        if about.get("size") is None:  # listings of web servers do not say
            about = _tried(lambda: self._fs.info(path), f"read '{path}'")
        version = str(about.get("ETag") or about.get("etag") or about.get("mtime") or "")
        relative = path.removeprefix(self._base).lstrip("/")
        return RemoteFile(path, relative, int(about.get("size") or 0), version)

    def _place(self, file: RemoteFile) -> Path:
        """Return the path of the partial download of a file."""
        folder = hashlib.sha256(file.key.encode()).hexdigest()[:24]
        return self.layout.pulls / folder / PurePosixPath(file.path).name

    def _download(self, file: RemoteFile, on_file: OnFile) -> Path:
        """Download a file, resuming a partial download, and return its local path."""
        local = self._place(file)
        local.parent.mkdir(parents=True, exist_ok=True)

        def fetch() -> None:
            with local.open("ab") as target, self._fs.open(file.path, "rb") as remote:
                try:
                    _copy(remote, target, lambda here: on_file(file, here))
                except ValueError:  # a web server without byte ranges
                    with self._fs.open(file.path, "rb", block_size=0) as stream:
                        target.truncate(0)
                        _copy(stream, target, lambda here: on_file(file, here))

        _tried(fetch, f"read '{file.path}'")
        size = local.stat().st_size
        if file.size and size != file.size:
            local.unlink()
            raise StorageError(
                f"Expected {file.size} bytes of '{file.relative}'; got {size}. It may have changed "
                "meanwhile: pull again."
            )
        return local


def _copy(remote: IO[bytes], target: IO[bytes], on_bytes: Callable[[int], None]) -> None:
    """Append the rest of `remote` to `target`."""
    if here := target.tell():
        remote.seek(here)
    while block := remote.read(_BLOCK):
        target.write(block)
        on_bytes(target.tell())


def _tried(call: Callable[[], T], what: str) -> T:
    """Return what `call` returns, after a few tries with growing pauses.

    Raises:
        StorageError: If none succeeds.
    """
    try:
        for attempt in stamina.retry_context(
            on=_may_pass, attempts=_TRIES, wait_initial=0.2, wait_max=30.0, timeout=600
        ):
            with attempt:
                return call()
    except Exception as error:
        raise StorageError(
            f"Expected to {what}; {type(error).__name__}: {error}. Run the same command again to go "
            "on where it stopped."
        ) from error
    raise AssertionError("a retry context ends by a result or an error")


def _may_pass(error: Exception) -> bool:
    """Return whether a retry may succeed; the errors of file systems have no common base."""
    return not isinstance(error, FileNotFoundError | PermissionError | NotImplementedError)


def _end_line(ledger: Path) -> None:
    """Terminate an incomplete last line, so that the next one starts on its own."""
    if ledger.exists() and not ledger.read_bytes().endswith(b"\n"):
        with ledger.open("a") as file:
            file.write("\n")


def _read(ledger: Path) -> Iterator[PullOutcome]:
    """Yield the entries of a ledger, without an incomplete last line."""
    if not ledger.exists():
        return
    for line in ledger.read_text().splitlines():
        try:
            yield PullOutcome(**json.loads(line))
        except (ValueError, TypeError):
            continue
