"""Examine the machine that the system runs on, or is to run on: `appa doctor`.

Each finding is `ok`, a `warning` (it works, but may fail later) or a `problem` (it does not work, or
loses data), with what was found and what to do. A running system is not changed. Settings come from
the same APPA_* variables as those of the processes.
"""

import importlib.metadata
import os
import platform
import re
import socket
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.markup import escape

from deploy.console import (
    DEFAULT_DATA,
    AsJson,
    DataFolder,
    counted,
    duration,
    key_table,
    out,
    print_json,
)
from model.domain.errors import AppaError
from model.domain.files import code_version
from worker.contract.buckets import open_bucket
from worker.contract.disk import disk_state, is_on_network
from worker.contract.layout import Layout
from worker.contract.redis_server import connect, redis_health
from worker.settings import WorkerSettings

__all__ = ["Finding", "Setting", "doctor_app", "examine"]

_DISTRIBUTION = "appa-service"
_MIN_PYTHON = (3, 11)
_FEW_INODES = 0.05
_SKEW_WARNING, _SKEW_PROBLEM = 1.0, 15.0
"""Clock skew to the broker in seconds; leases last half a minute."""
_SLOW = 0.05
"""Round-trip time to the broker in seconds above which every step of a job is slowed down."""

State = Literal["ok", "warning", "problem"]
_COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        area: `environment`, `broker`, `storage`, `results`, `uploads`, `observations`, `model`,
            `clock`, `sandbox` or `port`.
        name: What was checked.
        state: `ok`, `warning` or `problem`.
        found: What was found.
        advice: What to do; empty if nothing.
    """

    area: str
    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Setting:
    """What is examined: the settings of the processes, and where the gateway listens."""

    settings: WorkerSettings
    host: str
    port: int


doctor_app = typer.Typer(add_completion=False)


@doctor_app.command()
def doctor(
    data: DataFolder = DEFAULT_DATA,
    host: Annotated[
        str, typer.Option(envvar="APPA_HOST", help="Address of the gateway.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="APPA_PORT", help="Port of the gateway.")] = 8000,
    as_json: AsJson = False,
) -> None:
    """Examine this machine: environment, broker, storage, results, model, clock, sandbox, port.

    Exit status: 0 if all is well or there are warnings alone, 1 if there is a problem.
    """
    settings = WorkerSettings(data_dir=data).with_local_broker()
    findings = list(examine(Setting(settings, host, port)))
    problems = [one for one in findings if one.state == "problem"]
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(one) for one in findings]})
    else:
        _show(findings)
    if problems:
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    table = key_table("", "what", "found, and what to do", keys=("",))
    for one in findings:
        what = one.area if one.name == one.area else f"{one.area}: {one.name}"
        found = escape(one.found) + (f"\n[bold]{escape(one.advice)}[/]" if one.advice else "")
        table.add_row(f"[{_COLOURS[one.state]}]{one.state}[/]", escape(what), found)
    out.print(table, highlight=False)
    counts = Counter(one.state for one in findings)
    words = [counted(counts[state], state) for state in ("warning", "problem")]
    out.print(", ".join([f"{counts['ok']} ok", *words]), highlight=False)


def examine(setting: Setting) -> Iterator[Finding]:
    """Yield the findings, area by area, as they are made."""
    for area, check in CHECKS.items():
        try:
            yield from check(setting)
        except ModuleNotFoundError as error:
            found = f"cannot be examined: the module '{error.name}' is not installed"
            extra = {"model": "model", "results": "objects"}.get(area, "ingest")
            advice = f"pip install '{_DISTRIBUTION}[{extra}]', if such workers run here"
            yield Finding(area, area, "warning", found, advice)
        except (AppaError, OSError) as error:
            yield Finding(area, area, "problem", str(error), "Mend what the message says.")


# -- environment


def _environment(_: Setting) -> Iterator[Finding]:
    area = "environment"
    found = f"{platform.python_version()} at {sys.executable}, {platform.platform(terse=True)}"
    fits = sys.version_info >= _MIN_PYTHON
    advice = "" if fits else "Install Python 3.11 or newer."
    yield Finding(area, "python", "ok" if fits else "problem", found, advice)
    yield Finding(area, "version", "ok", code_version())
    missing = _missing_by_extra()
    base = missing.pop("", [])
    advice = f"pip install {_DISTRIBUTION}"
    if base:
        yield Finding(area, "packages", "problem", f"missing: {', '.join(base)}", advice)
    whole, others = ([x for x in missing if bool(missing[x]) is lacks] for lacks in (False, True))
    found = f"installed: {', '.join(whole) or 'none'}; not: {', '.join(others) or 'none'}"
    yield Finding(area, "extras", "ok", found)
    yield from _eccodes()


def _missing_by_extra() -> dict[str, list[str]]:
    """Return the packages that are not installed, by extra; required ones under `""`."""
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree, not installed
        return {}
    missing: dict[str, list[str]] = {}
    contained: dict[str, list[str]] = {}
    for requirement in requirements:
        condition = re.search(r"extra == [\"'](.+?)[\"']", requirement)
        extra = condition[1] if condition else ""
        found = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        if found and found[1] == _DISTRIBUTION:
            contained.setdefault(extra, []).extend((found[2] or "").split(","))
        elif found and not _installed(found[1]):
            missing.setdefault(extra, []).append(found[1])
        missing.setdefault(extra, [])
    return {extra: _with_contained(extra, missing, contained) for extra in missing}


def _with_contained(
    extra: str, missing: dict[str, list[str]], contained: dict[str, list[str]]
) -> list[str]:
    """Return the missing packages of an extra and of the extras that it includes."""
    others = [_with_contained(one, missing, contained) for one in contained.get(extra, [])]
    return [*missing.get(extra, []), *(name for names in others for name in names)]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _eccodes() -> Iterator[Finding]:
    import eccodes

    version = eccodes.codes_get_api_version()
    advice = (
        "Unset ECCODES_DEFINITION_PATH and ECCODES_SAMPLES_PATH, or let them name the folders of "
        f"version {version}."
    )
    try:
        message = eccodes.codes_bufr_new_from_samples("BUFR4")
        eccodes.codes_set(message, "unexpandedDescriptors", 301011)
        eccodes.codes_release(message)
    except eccodes.CodesInternalError as error:
        yield Finding("environment", "eccodes", "problem", f"{version}: {error}", advice)
        return
    where = eccodes.codes_definition_path()
    yield Finding("environment", "eccodes", "ok", f"{version}, definitions in {where}")


# -- broker


def _broker(setting: Setting) -> Iterator[Finding]:
    area, url = "broker", setting.settings.redis_url
    with connect(url, retries=0) as redis:
        try:
            started = time.monotonic()
            redis.ping()
            took = time.monotonic() - started
            server: dict[str, Any] = dict(redis.info("server"))
            counts: dict[str, Any] = dict(redis.info("stats"))
        except (RedisError, OSError) as error:
            advice = "Start it (`appa up` brings one), or set APPA_REDIS_URL to where it is."
            found = f"{_without_password(url)} does not answer: {error}"
            yield Finding(area, "reachable", "problem", found, advice)
            return
        name = "Valkey" if "valkey_version" in server else "Redis"
        version = server.get("valkey_version", server.get("redis_version", "unknown"))
        found = f"{name} {version} at {_without_password(url)}, {1000 * took:.1f} ms an answer"
        advice = "Run the broker near the workers." if took > _SLOW else ""
        yield Finding(area, "reachable", "warning" if advice else "ok", found, advice)
        yield from _broker_settings(redis)
        yield _evictions(int(counts.get("evicted_keys", 0)))


def _broker_settings(redis: Redis) -> Iterator[Finding]:
    health = redis_health(redis)
    for warning in health.warnings:
        found, _, advice = warning.partition(". ")
        yield Finding("broker", "settings", "problem", found.split(" Set:")[0], advice or warning)
    if not health.warnings:
        found = "maxmemory-policy noeviction, append-only file on and synced"
        yield Finding("broker", "settings", "ok", found)
    limit = f"of {health.max_memory / 2**20:.0f} MiB" if health.max_memory else "without a limit"
    yield Finding("broker", "memory", "ok", f"{health.used_memory / 2**20:.1f} MiB {limit}")


def _evictions(count: int) -> Finding:
    if not count:
        return Finding("broker", "evicted keys", "ok", "none since it was started")
    advice = "Raise maxmemory and set maxmemory-policy noeviction; jobs may have been lost."
    return Finding("broker", "evicted keys", "problem", f"{count} since it was started", advice)


def _without_password(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//", url)


# -- storage


def _storage(setting: Setting) -> Iterator[Finding]:
    area, folder = "storage", setting.settings.data_dir
    if not folder.is_dir():
        advice = "Set APPA_DATA_DIR or give --data; `appa up` makes the folder."
        yield Finding(area, "data folder", "problem", f"{folder.absolute()} is no folder", advice)
        return
    yield _writable(folder)
    space = disk_state(Layout(folder), setting.settings)
    advice = "See `appa retention plan`." if space.low else ""
    yield Finding(area, "free space", "problem" if space.low else "ok", space.message, advice)
    yield _inodes(folder)
    network = is_on_network(folder)
    advice = "SQLite and locks need a local disk: move the data folder to one." if network else ""
    found = "a network file system" if network else "a local file system"
    yield Finding(area, "file system", "warning" if network else "ok", found, advice)
    yield from _permissions(folder)


def _writable(folder: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        owner = folder.stat().st_uid
        advice = f"Run as user {owner}, who owns it, or free space on its disk."
        return Finding("storage", "data folder", "problem", f"{folder}: {error.strerror}", advice)
    return Finding("storage", "data folder", "ok", f"{folder.absolute()} can be written")


def _inodes(folder: Path) -> Finding:
    usage = os.statvfs(folder)
    if not usage.f_files:
        return Finding("storage", "inodes", "ok", "the file system has no fixed number")
    found = f"{usage.f_favail} of {usage.f_files} free"
    if usage.f_favail < _FEW_INODES * usage.f_files:
        advice = (
            "Merge small files: `appa observations compact START END`; or a larger file system."
        )
        return Finding("storage", "inodes", "problem", found, advice)
    return Finding("storage", "inodes", "ok", found)


def _permissions(folder: Path) -> Iterator[Finding]:
    """Check who else may read the data folder, above all the keys and the broker's socket."""
    layout, open_to_all = Layout(folder), stat.S_IRWXG | stat.S_IRWXO
    if (owner := folder.stat().st_uid) != os.geteuid():
        advice = f"Run every process as user {owner}."
        found = f"belongs to user {owner}, this is user {os.geteuid()}"
        yield Finding("storage", "owner", "warning", found, advice)
    secrets = (layout.keys_file, layout.broker, layout.records_file)
    wrong = [path for path in secrets if path.exists() and path.stat().st_mode & open_to_all]
    for path in wrong:
        mode = stat.filemode(path.stat().st_mode)
        advice = f"chmod go= '{path}'"
        yield Finding("storage", "permissions", "problem", f"{path.name} is {mode}", advice)
    if not wrong:
        mode = stat.filemode(folder.stat().st_mode)
        found = f"{mode}; keys, records and broker are for this user alone"
        yield Finding("storage", "permissions", "ok", found)


# -- results, uploads and observations


def _results(setting: Setting) -> Iterator[Finding]:
    layout = setting.settings.layout
    folder = layout.root / "analyses"
    where, command = f"in {folder} that nobody sees", "appa catalogue send"
    left = folder.glob("*/manifest.json")
    yield from _moved("results", layout.results_url, left, "result", where, command)


def _uploads(setting: Setting) -> Iterator[Finding]:
    layout = setting.settings.layout
    where, command = f"in {layout.raw} that nobody ingests", "appa observations send"
    left = layout.raw.glob("*/content")
    yield from _moved("uploads", layout.uploads_url, left, "upload", where, command)


def _observations(setting: Setting) -> Iterator[Finding]:
    layout = setting.settings.layout
    folder = layout.root / "observations"
    where, command = f"in {folder} that nobody reads", "appa observations send"
    left = folder.glob("date=*")
    yield from _moved("observations", layout.observations_url, left, "day", where, command)


def _moved(
    area: str, url: str, left: Iterable[Path], noun: str, where: str, command: str
) -> Iterator[Finding]:
    """Check the bucket of an area, and look for data left in the data folder from before its use."""
    yield from _bucket(area, url)
    count = sum(1 for _ in left) if url else 0
    if count:
        found = f"{counted(count, noun)} {where}"
        yield Finding(area, "data folder", "warning", found, f"Send them: `{command}`.")


def _bucket(area: str, url: str) -> Iterator[Finding]:
    """Check that conditional writes work: a server may accept the condition and ignore it."""
    if not url:
        yield Finding(area, area, "ok", "in the data folder")
        return
    bucket, variable = open_bucket(url), f"APPA_{area.upper()}_URL"
    if problem := bucket.problem():
        advice = f"Look at {variable}, AWS_ENDPOINT_URL, AWS_REGION and the credentials."
        yield Finding(area, "bucket", "problem", problem, advice)
        return
    yield Finding(area, "bucket", "ok", f"{url} answers")
    advice = f"Use a bucket whose server does this, or leave {variable} empty."
    for promise, fault in bucket.faults():
        if fault:
            yield Finding(area, promise, "problem", fault, advice)
        else:
            yield Finding(area, promise, "ok", "kept")


# -- model


def _model(setting: Setting) -> Iterator[Finding]:
    import torch

    from model.card import CARD_NAME, read_card
    from model.checkpoints.assemble import check_sha256
    from model.checkpoints.bundle import WEIGHTS, resolve
    from worker.loaded_models import choose_device

    names = setting.settings.models or [p.parent.name for p in WEIGHTS.glob(f"*/{CARD_NAME}")]
    if not names:
        advice = "Set APPA_MODELS, or `appa up --model FOLDER`; none comes with this version."
        yield Finding("model", "checkpoint", "problem", "there is none", advice)
    for name in sorted(names):
        try:
            folder = resolve(name)
            card = read_card(folder / CARD_NAME)
            for file in card.files.values():
                check_sha256(folder / file.path, file.sha256)
        except AppaError as error:
            advice = "Fetch or import it again: `appa checkpoint import SOURCE TARGET`."
            yield Finding("model", name, "problem", error.message, advice)
            continue
        found = f"{counted(len(card.files), 'file')} with the checksums of the card, in {folder}"
        yield Finding("model", card.name, "ok", found)
    device = choose_device(setting.settings.device)
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    yield Finding("model", "device", "ok", f"{found}, torch {torch.__version__}")
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    advice = f"Set OMP_NUM_THREADS={cores} or fewer." if threads > cores else ""
    found = f"{threads} threads on {cores} cores"
    yield Finding("model", "threads", "warning" if advice else "ok", found, advice)


# -- clock, sandbox, port


def _clock(setting: Setting) -> Iterator[Finding]:
    with connect(setting.settings.redis_url, retries=0) as redis:
        try:
            before = time.time()
            seconds, micros = redis.time()
            skew = (before + time.time()) / 2 - (seconds + micros / 1e6)
        except (RedisError, OSError):
            yield Finding("clock", "skew", "warning", "unknown: the broker does not answer")
            return
    state: State = "ok" if abs(skew) < _SKEW_WARNING else "warning"
    state = "problem" if abs(skew) >= _SKEW_PROBLEM else state
    word = "behind" if skew < 0 else "ahead of"
    found = (
        f"{duration(abs(skew))} {word} the broker's, in UTC {time.strftime('%F %T', time.gmtime())}"
    )
    advice = "" if state == "ok" else "Set both clocks by NTP: cut-offs and leases depend on them."
    yield Finding("clock", "skew", state, found, advice)


def _sandbox(_: Setting) -> Iterator[Finding]:
    from worker.protections import protections

    for one in protections():
        if one.active:
            yield Finding("sandbox", one.name, "ok", "decoding is held back")
        else:
            advice = f"Needs {one.means}. Until then take uploads from trusted senders alone."
            yield Finding("sandbox", one.name, "warning", "NOT held back on this kernel", advice)


def _port(setting: Setting) -> Iterator[Finding]:
    where = f"{setting.host}:{setting.port}"
    try:
        with socket.create_connection((setting.host, setting.port), timeout=2.0):
            pass
    except OSError:
        yield Finding("port", where, "ok", "free")
        return
    try:
        answer = httpx.get(f"http://{where}/health/live", timeout=5.0).json()
        yield Finding("port", where, "ok", f"a gateway of version {answer['version']} answers")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        advice = "Stop that program, or give the gateway another port: --port or APPA_PORT."
        yield Finding("port", where, "problem", "another program listens there", advice)


CHECKS: dict[str, Callable[[Setting], Iterator[Finding]]] = {
    "environment": _environment,
    "broker": _broker,
    "storage": _storage,
    "results": _results,
    "uploads": _uploads,
    "observations": _observations,
    "model": _model,
    "clock": _clock,
    "sandbox": _sandbox,
    "port": _port,
}
"""The checks of each area."""
