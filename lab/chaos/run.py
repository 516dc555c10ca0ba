"""Run an exercise: a fresh stack, uploads, jobs and cycles, faults, recovery, and the audit.

Evidence is collected through the API, from Redis and from disk.
"""

import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from redis import Redis
from rich.table import Table

from lab.chaos.audit import BatchFound, ChaosEvidence, ChaosReport, ChaosVerdict, JobFound, judge
from lab.chaos.content import DamagedBatches, Row, rows_of, undisturbed
from lab.chaos.cycles import (
    CycledResult,
    CycleFound,
    arrival_margin,
    cycle_found,
    cycle_policy,
    cycled_result,
    due_keys,
    fast_clock,
    unended_cycles,
    wait_for_noon,
    write_policy,
)
from lab.chaos.plan import ChaosPlan, FaultKind, Rates, chaos_plan
from lab.chaos.stack import ChaosStack
from lab.chaos.traffic import Ledger, Traffic
from lab.tiny_model import tiny_model
from model.checkpoints.bundle import save_checkpoint
from worker.contract.kinds import FIRST_YEAR, LAST_YEAR

__all__ = [
    "chaos_table",
    "collect",
    "run_chaos",
    "wait_quiet",
]

Report = Callable[[str], None]

_START_SECONDS = 300.0
_ANSWER_SECONDS = 300.0
_TELL_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_OVERTIME_SECONDS = 30.0


def run_chaos(
    minutes: float,
    seed: int,
    folder: Path,
    report: Report,
    *,
    model: str | None = None,
    rates: Rates | None = None,
    quiet_seconds: float = 600.0,
) -> ChaosReport:
    """Run an exercise against a fresh stack.

    Arguments:
        minutes: Duration of traffic and faults.
        seed: Of the plan.
        folder: An empty folder; the log of the stack stays in it.
        report: Called with lines of progress.
        model: Checkpoint of the jobs; None makes a tiny one.
        rates: Mean numbers of uploads, jobs and faults per minute.
        quiet_seconds: Longest wait after the faults until accepted work has ended.

    Raises:
        AppaError: If the stack does not start.
    """
    plan = chaos_plan(minutes, seed, rates)
    if model is None:
        model = str(folder / "tiny")
        save_checkpoint(tiny_model(), Path(model))
    ledger = Ledger()
    with ChaosStack(folder, model, watermark=plan.watermark, clock=fast_clock(plan)) as stack:
        stack.wait_ready(_START_SECONDS)
        report(_beginning(plan, stack))
        first = wait_for_noon(stack.clock)
        due = _begin_cycles(stack, plan, first)
        traffic, damaged = Traffic(stack.url, plan, ledger, first), DamagedBatches(plan)
        traffic.start()
        damaged.start()
        _inject_faults(plan, stack, ledger, report)
        stack.recover()
        report(f"healed after {_done(stack)}; {ledger.accepted} accepted")
        answered = traffic.finish(_ANSWER_SECONDS)
        damaged.finish(traffic.unsent())
        stuck = wait_quiet(stack.url, quiet_seconds, due)
        report("quiet: all has ended" if not stuck else "; ".join(stuck))
        evidence = collect(stack, ledger, stuck, due)
        verdict = judge(ledger, evidence)
        verdict.findings += damaged.findings
        if not answered:
            verdict.findings.append("senders were not answered although all was healed")
        return _report(plan, stack, ledger, damaged.count, evidence, verdict)


def _begin_cycles(stack: ChaosStack, plan: ChaosPlan, first: datetime) -> tuple[str, ...]:
    """Start the cycles of a plan; return the keys of those that fall due."""
    if not plan.hours:
        return ()
    policy = cycle_policy(first, plan.hours)
    write_policy(stack.layout, policy)
    return due_keys(policy)


def _beginning(plan: ChaosPlan, stack: ChaosStack) -> str:
    if not stack.can_fill:
        disk = "the disk is not filled: no file system can be mounted here"
    elif plan.watermark:
        disk = "the data lie on a tmpfs, with a watermark"
    else:
        disk = "the data lie on a tmpfs, without a watermark"
    sent = f"{len(plan.uploads)} uploads, {len(plan.jobs)} jobs and {plan.hours} hours planned"
    return f"seed {plan.seed}: {sent}, {len(plan.faults)} faults; {disk}"


def _inject_faults(plan: ChaosPlan, stack: ChaosStack, ledger: Ledger, report: Report) -> None:
    began, told = time.monotonic(), 0.0
    waiting = list(plan.faults)
    while (now := time.monotonic() - began) < plan.seconds or (
        waiting and now < plan.seconds + _OVERTIME_SECONDS
    ):
        stack.tend()
        for fault in [fault for fault in waiting if fault.at <= now]:
            waiting.remove(fault)
            done = stack.inject(fault)
            if not done:  # a part that is down is hit when it is up again
                waiting.append(replace(fault, at=now + _AGAIN_SECONDS))
            lasts = f" for {fault.seconds:.1f} s" if fault.seconds else ""
            else_ = "" if done else " (nothing to hit, tried again)"
            report(f"{now:6.1f} s  {fault.kind} {fault.part}{lasts}{else_}")
        if now - told > _TELL_SECONDS:
            told = now
            report(f"{now:6.1f} s  {len(ledger.uploads)} sent, {ledger.accepted} accepted")
        time.sleep(0.05)


def _done(stack: ChaosStack) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(stack.injected.counts.items()))


def _report(
    plan: ChaosPlan,
    stack: ChaosStack,
    ledger: Ledger,
    batched: int,
    evidence: ChaosEvidence,
    verdict: ChaosVerdict,
) -> ChaosReport:
    uploads = [sent.content for sent in ledger.uploads.values()]
    mutated = sum(content.mutated for content in uploads)
    return ChaosReport(
        seed=plan.seed,
        minutes=round(plan.seconds / 60.0, 3),
        accepted=verdict.accepted,
        ended=verdict.ended,
        lost=verdict.lost,
        doubled=verdict.doubled,
        wrongly_rejected=verdict.wrongly_rejected,
        kills=stack.injected.kills,
        full_disks=stack.injected.counts.get(FaultKind.FULL_DISK, 0),
        broker_cuts=stack.injected.broker_cuts,
        mutated=mutated + batched,
        http_5xx=len(ledger.faults),
        uploads=len(uploads) - mutated,
        jobs=len(ledger.jobs),
        cycles=verdict.cycles,
        cycles_published=verdict.cycles_published,
        cycles_excused=verdict.cycles_excused,
        redis_bytes=evidence.redis_bytes,
        disk_bytes=evidence.disk_bytes,
        findings=tuple([*verdict.findings, *(f"http 5xx: {told}" for told in ledger.faults)]),
    )


def chaos_table(found: ChaosReport) -> Table:
    """Return the numbers of a report as a table."""
    table = Table("", "", show_header=False, title=f"chaos, seed {found.seed}")
    for name, value in found.as_json().items():
        if name not in ("findings", "seed"):
            table.add_row(name.replace("_", " "), str(value))
    return table


_TIMEOUT = 60.0
_UNFINISHED = {
    "batches": ("received", "ingesting"),
    "jobs": ("queued", "running", "cancelling"),
}
_FEW_KEYS = 100
"""Keys that an installation keeps in Redis after all work has ended: workers, indices, metrics."""
_FOR_EVER = -1
_FEW_MEGABYTES = 32
_BESIDES_MEGABYTES = 160
"""What the data folder may hold besides uploads and results: mostly the broker's append-only file,
which is rewritten at 64 MB, then records and logs."""
_TOGETHER = 200
_UNACKNOWLEDGED = 8
"""Messages that a process which was killed or cut off may have held; they expire by themselves."""


def _pages(http: httpx.Client, path: str, **parameters: str) -> Iterator[dict[str, Any]]:
    cursor: dict[str, str] = {}
    while True:
        answer = http.get(path, params={"limit": "500", **parameters, **cursor}).raise_for_status()
        page = answer.json()
        yield from page["items"]
        if not page["next_cursor"]:
            return
        cursor = {"cursor": page["next_cursor"]}


def _unfinished(http: httpx.Client) -> dict[str, int]:
    """Return the number of uploads and jobs that have not ended, by noun and state."""
    return {
        f"{noun} {state}": total
        for noun, states in _UNFINISHED.items()
        for state in states
        if (total := http.get(f"/v1/{noun}", params={"state": state, "limit": 1}).json()["total"])
    }


def _cycles(http: httpx.Client) -> dict[str, CycleFound]:
    return {one["id"]: cycle_found(one) for one in _pages(http, "/v1/cycles")}


def wait_quiet(url: str, seconds: float, due: Sequence[str] = ()) -> list[str]:
    """Wait until the system is ready and all that was accepted has ended, and all cycles of `due`.

    Returns:
        What still waited when time ran out; empty when all is quiet.
    """
    end = time.monotonic() + seconds
    told = ["nothing was answered"]
    with httpx.Client(base_url=url, timeout=_TIMEOUT) as http:
        while time.monotonic() < end:
            with suppress(httpx.HTTPError, ValueError, KeyError):
                left = _unfinished(http) | unended_cycles(due, _cycles(http))
                ready = http.get("/health/ready")
                told = [f"{count} {what}" for what, count in left.items()]
                told += [] if ready.is_success else [ready.json()["detail"]]
                if not told:
                    return []
            time.sleep(0.5)
    return [f"stuck after {seconds:.0f} s: {what}" for what in told]


def collect(
    stack: ChaosStack,
    ledger: Ledger,
    stuck: list[str],
    due: Sequence[str] = (),
    settle_seconds: float = 60.0,
) -> ChaosEvidence:
    """Return the evidence of a stack that is quiet.

    Arguments:
        stack: A running stack.
        ledger: What was sent.
        stuck: What did not end, from `wait_quiet`.
        due: Keys of the cycles that fell due.
        settle_seconds: Longest wait for Redis to expire the keys of ended work.
    """
    with httpx.Client(base_url=stack.url, timeout=_TIMEOUT) as http:
        batches = {one["id"]: _batch(one) for one in _pages(http, "/v1/batches")}
        jobs = {one["id"]: _job(one) for one in _pages(http, "/v1/jobs")}
        cycles = _cycles(http)
        analyses, cycled, damaged = _results(http)
        rows = _rows(http)
    held = _UNACKNOWLEDGED * (1 + sum(stack.injected.counts.values()))
    with stack.redis() as redis:
        leftovers = [*stuck, *_redis(redis, settle_seconds, held)]
        info: Any = redis.info("memory")
    disk_bytes = _bytes(stack.layout.root)
    leftovers += _disk(stack, set(batches), disk_bytes)
    damaged += [
        f"{folder.name} has no manifest"
        for folder in stack.layout.analyses.iterdir()
        if not (folder / "manifest.json").exists()
    ]
    mutated = [
        sent.content for sent in ledger.uploads.values() if sent.content.mutated and sent.ids
    ]
    return ChaosEvidence(
        batches,
        jobs,
        rows,
        analyses,
        damaged,
        leftovers,
        undisturbed(mutated),
        due,
        cycles,
        cycled,
        arrival_margin(stack.clock.speed),
        info["used_memory"],
        disk_bytes,
    )


def _problem(record: dict[str, Any]) -> str:
    error = record["error"]
    return f"{error['code']}: {error['message']}" if error else ""


def _batch(record: dict[str, Any]) -> BatchFound:
    summary = record["summary"] or {}
    found = summary.get("observations")
    created = datetime.fromisoformat(record["created"])
    return BatchFound(record["state"], record["sha256"], found, _problem(record), created)


def _job(record: dict[str, Any]) -> JobFound:
    return JobFound(record["state"], record["analysis_id"], _problem(record))


def _results(http: httpx.Client) -> tuple[dict[str, str], list[CycledResult], list[str]]:
    """Return the job of each result, the inputs of results of cycles, and incomplete results."""
    found: dict[str, str] = {}
    cycled: list[CycledResult] = []
    damaged: list[str] = []
    for result in _pages(http, "/v1/analyses"):
        found[result["id"]] = result["job_id"]
        missing = {"data", "feedback"} - {file["role"] for file in result["files"]}
        damaged += [f"{result['id']} has no file of {role}" for role in sorted(missing)]
        for file in result["files"]:
            answer = http.get(f"/v1/analyses/{result['id']}/{file['name']}")
            if (
                not answer.is_success
                or hashlib.sha256(answer.content).hexdigest() != file["sha256"]
            ):
                damaged.append(f"{result['id']}/{file['name']}: {answer.status_code}")
            elif file["role"] == "feedback" and file["name"].endswith(".parquet"):
                made = cycled_result(result, answer.content)
                cycled += [made] if made else []
    return found, cycled, damaged


def _rows(http: httpx.Client) -> dict[str, Counter[Row]]:
    """Return all rows of the store by upload; damaged reports may be of any year."""
    found: dict[str, Counter[Row]] = defaultdict(Counter)
    asked: dict[str, str | int] = {
        "start": datetime(FIRST_YEAR, 1, 1, tzinfo=UTC).isoformat(),
        "end": datetime(LAST_YEAR, 12, 31, tzinfo=UTC).isoformat(),
        "columns": "batch_id,station_id,variable,time,obs_value",
        "format": "parquet",
        "limit": 100_000,
        "offset": 0,
    }
    while True:
        answer = http.get("/v1/observations", params=asked).raise_for_status()
        table = pq.read_table(io.BytesIO(answer.content))
        for batch_id, row in zip(table["batch_id"].to_pylist(), rows_of(table), strict=True):
            found[str(batch_id)][row] += 1
        if "x-next-offset" not in answer.headers:
            return found
        asked["offset"] = answer.headers["x-next-offset"]


def _redis(redis: Redis, seconds: float, held: int) -> list[str]:
    """Return what Redis keeps although all has ended."""
    end = time.monotonic() + seconds
    while (told := _kept(redis, held)) and time.monotonic() < end:
        time.sleep(1.0)
    return told


def _kept(redis: Redis, held: int) -> list[str]:
    info: Any = redis.info("memory")
    told = []
    lasting = [str(key) for key in redis.scan_iter(count=1000) if redis.ttl(key) == _FOR_EVER]
    if len(lasting) > _FEW_KEYS:
        stems = Counter(map(_stem, lasting)).most_common(4)
        told.append(f"Redis keeps {len(lasting)} keys although all has ended: {stems}")
    if info["used_memory"] > _FEW_MEGABYTES * 2**20:
        told.append(f"Redis uses {info['used_memory'] / 2**20:.0f} MiB although all has ended")
    for key in redis.scan_iter(match="*:broker:*", count=1000):
        kind: Any = redis.type(key)
        length: Any = {"list": redis.llen, "hash": redis.hlen}.get(str(kind), lambda _: 0)(key)
        if length > (held if "unacked" in key else 0):
            told.append(
                f"{length} messages are left in '{key}': {_first_message(redis, key, kind)}"
            )
    return told


def _stem(key: str) -> str:
    return ":".join(part for part in key.split(":")[:3] if not any(c.isdigit() for c in part))


def _first_message(redis: Redis, key: str, kind: str) -> str:
    with suppress(Exception):
        first: Any = redis.lindex(key, 0) if kind == "list" else next(iter(redis.hvals(key)))
        message = json.loads(first)
        headers = (message[0] if isinstance(message, list) else message)["headers"]
        return f"{headers['task']} {headers['argsrepr']}"
    return "?"


def _bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # merged or archived meanwhile
            found += path.lstat().st_size if path.is_file() else 0
    return found


def _disk(stack: ChaosStack, known: set[str], used: int) -> list[str]:
    """Return descriptions of files that nothing needs any more, and of excessive size."""
    layout = stack.layout
    orphans = {path.name for path in layout.raw.iterdir()} - known
    told = [f"raw/{name} is of no known upload" for name in sorted(orphans)]
    told += [f"tmp/{path.name} is left" for path in layout.tmp.iterdir() if _is_upload(path)]
    published = [file.parent for file in layout.analyses.glob("*/manifest.json")]
    besides = used - sum(map(_bytes, (layout.raw, *published)))
    if besides > _BESIDES_MEGABYTES * 2**20:
        told.append(f"the data folder holds {besides / 2**20:.0f} MiB besides uploads and results")
    return told


def _is_upload(path: Path) -> bool:
    return path.name.startswith("upload-")
