"""Back up and restore the records of an installation: `appa backup`, `appa restore`, `appa recover`.

A backup holds records, keys, sources and policies. Uploads, observations and results are files that
are copied beside it, by rsync or whatever copies disks: docs/operations.md says in which order.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import structlog
import typer
from redis.exceptions import RedisError

from deploy.console import (
    DEFAULT_DATA,
    AsJson,
    DataFolder,
    counted,
    err,
    installed_layout,
    mebibytes,
    out,
    print_json,
)
from model.domain.errors import StorageError
from worker.backup.backup import (
    BackupManifest,
    is_address,
    make_backup,
    opened_at,
    send_backup,
)
from worker.contract.layout import Layout
from worker.contract.redis_server import redis_health
from worker.contract.store import Stores, open_stores
from worker.settings import WorkerSettings

__all__ = ["backup_app", "recover_app", "restore_app"]

backup_app = typer.Typer(add_completion=False)
restore_app = typer.Typer(add_completion=False)
recover_app = typer.Typer(add_completion=False)

_SHOWN = 20


@contextmanager
def _broker(layout: Layout) -> Iterator[str]:
    """Yield the URL of Redis: APPA_REDIS_URL, or the embedded server, started if it does not run."""
    _logs_beside_the_answer()
    if "APPA_REDIS_URL" in os.environ:
        yield WorkerSettings().redis_url
        return
    from deploy.local import embedded_broker

    with embedded_broker(layout) as url:
        yield url


def _logs_beside_the_answer() -> None:
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))


@contextmanager
def _stores(url: str, layout: Layout) -> Iterator[Stores]:
    stores = open_stores(url, WorkerSettings().redis_prefix, layout)
    try:
        with closing(stores.redis):
            yield stores
    except RedisError as error:
        raise StorageError(
            f"Expected Redis to answer; {error}. Start it, or set APPA_REDIS_URL."
        ) from error
    finally:
        if stores.archive is not None:
            stores.archive.close()


@backup_app.command()
def backup(
    place: Annotated[
        str,
        typer.Argument(
            help="A new or empty folder, a new file ….tar or ….tar.gz, or a new object "
            "s3://bucket/folder/….tar.gz."
        ),
    ],
    data: DataFolder = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Back up records, keys, sources and policies; the system may go on running.

    Uploads, observations and results are not in it: copy `observations`, `raw` and `analyses` of the
    data folder after it. Redis is that of APPA_REDIS_URL, or the embedded one of the data folder.
    One in a bucket also holds the series of verification and the audit log.
    """
    layout = installed_layout(data)
    if not layout.root.is_dir():
        raise StorageError(f"Expected a data folder; '{layout.root}' is none. Give --data.")
    prefix = WorkerSettings().redis_prefix
    with _broker(layout) as url:
        if is_address(place):
            made = send_backup(layout, url, prefix, place)
        else:
            made = make_backup(layout, url, prefix, Path(place))
    if as_json:
        print_json(made)
        return
    _show_backup(place, made)
    if not is_address(place):
        copied = "observations, raw, analyses, verification, logs"
        out.print("not in it: uploads, observations, results; copy them now, in this order:")
        out.print(copied, highlight=False)
    elif left := _in_folder(layout):
        out.print(f"not in it, nor in a bucket: {', '.join(left)}; copy them now", highlight=False)


def _in_folder(layout: Layout) -> list[str]:
    """Return the subfolders that hold data of this installation, because it is not in a bucket."""
    places = {
        "observations": layout.observations_url,
        "raw": layout.uploads_url,
        "analyses": layout.results_url,
    }
    return [name for name, url in places.items() if not url]


def _show_backup(place: str, made: BackupManifest) -> None:
    size = mebibytes(sum(part.size for part in made.parts))
    text = f"{place}: {counted(len(made.parts), 'part')}, {size}"
    out.print(text, markup=False, highlight=False, soft_wrap=True)
    moment = "of one moment" if made.one_moment else "read in parts while others wrote"
    out.print(f"{counted(made.keys, 'key')} of Redis ({made.server}), {moment}", highlight=False)


@restore_app.command()
def restore(
    place: Annotated[
        str, typer.Argument(help="A backup: its folder, its tar file, or s3://bucket/….tar.gz.")
    ],
    data: DataFolder = DEFAULT_DATA,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="There may be an installation: its keys in Redis are deleted, its records and "
            "settings moved aside; uploads, observations and results stay.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Restore nothing: is all that the backup names there?"),
    ] = False,
    digests: Annotated[
        bool, typer.Option("--digests", help="With --check: read all bytes of results.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup back into an empty data folder and an empty Redis; nothing may be running.

    Copy uploads, observations and results, then say --check: exit status 1 if something that the
    backup names is missing or damaged. What retention removed since the backup is named too.
    """
    layout = installed_layout(data)
    with opened_at(place) as (folder, manifest):
        if check:
            _check(folder, layout, digests=digests, as_json=as_json)
        else:
            whole = is_address(place)
            _restore(folder, manifest, layout, replace=replace, whole=whole, as_json=as_json)


def _restore(
    folder: Path,
    manifest: BackupManifest,
    layout: Layout,
    *,
    replace: bool,
    whole: bool,
    as_json: bool,
) -> None:
    from worker.backup.restore import require_room, restore_backup

    prefix = WorkerSettings().redis_prefix
    require_room(layout, replace=replace)
    layout.create()
    with _broker(layout) as url:
        done = restore_backup(folder, manifest, layout, url, prefix, replace=replace)
        with _stores(url, layout) as stores:
            warnings = redis_health(stores.redis).warnings
    if as_json:
        print_json(asdict(done) | {"created": manifest.created, "warnings": warnings})
        return
    when = f"{manifest.created:%Y-%m-%d %H:%M} UTC"
    out.print(
        f"restored {counted(len(done.files), 'file')} and {counted(done.keys, 'key')} of {when} into "
        f"{layout.root}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if done.aside:
        out.print(f"what was there is in {done.aside}", markup=False, highlight=False)
    for warning in warnings:
        err.print(f"redis: {warning}", markup=False)
    left = [*_in_folder(layout), *(() if whole else ("verification", "logs"))]
    copy = f"copy {', '.join(left)}; then " if left else ""
    out.print(f"next: {copy}say --check", highlight=False)


def _check(folder: Path, layout: Layout, *, digests: bool, as_json: bool) -> None:
    from worker.backup.restore import check_installation

    with _broker(layout) as url, _stores(url, layout) as stores:
        found = check_installation(folder, layout, stores, digests=digests)
    if as_json:
        print_json(asdict(found))
    else:
        out.print(
            f"{counted(found.results, 'result')} with {counted(found.files, 'file')}, "
            f"{counted(found.uploads, 'upload')}, "
            f"{counted(found.newer, 'result')} newer than the backup",
            highlight=False,
        )
        for name, why in list(found.missing.items())[:_SHOWN]:
            err.print(f"{name}: {why}", markup=False, highlight=False, soft_wrap=True)
        if found.missing:
            wrong = counted(len(found.missing), "item")
            err.print(f"{wrong} missing or damaged", highlight=False)
    if found.missing:
        raise typer.Exit(1)


@recover_app.command()
def recover(
    data: DataFolder = DEFAULT_DATA,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds for which uploads and jobs may be on their way to Redis; 0 where no "
            "gateway runs.",
        ),
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Rebuild what a Redis that lost its data held, and the catalogue, from the data folder.

    A running scheduler does so by itself; this does it at once, beside it or without it, and tells
    what came back. Exit status 1 if something could not be brought back.
    """
    from worker.backup.restore import recover as rebuild
    from worker.process import message_sender

    layout = installed_layout(data)
    if not layout.raw.is_dir():
        raise StorageError(f"Expected a data folder; '{layout.root}' is none. Give --data.")
    with _broker(layout) as url, _stores(url, layout) as stores:
        settings = WorkerSettings().model_copy(update={"redis_url": url, "data_dir": layout.root})
        with message_sender(settings) as sender:
            found = rebuild(layout, stores, sender, grace_seconds=grace)
    if as_json:
        print_json(asdict(found))
    else:
        out.print(f"{counted(found.results, 'result')} in the catalogue", highlight=False)
        for noun, states in (("uploads", found.uploads), ("jobs", found.jobs)):
            _show_states(noun, states)
        _show_states("cycles", found.cycles)
        brought = ", ".join(f"{count} {noun}" for noun, count in found.restored.items())
        out.print(
            f"{counted(found.webhooks, 'webhook')}; records brought back: {brought}",
            highlight=False,
        )
        for name, why in found.unreadable.items():
            err.print(f"no result in '{name}': {why}", markup=False)
        for name in found.unusable:
            err.print(f"upload without a record: {name}; its log line says why", markup=False)
        if found.young:
            err.print(f"{found.young} were too young: the scheduler brings them", highlight=False)
    if not found.whole:
        raise typer.Exit(1)


def _show_states(noun: str, states: dict[str, int]) -> None:
    text = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    out.print(f"{noun}: {text}", highlight=False)
