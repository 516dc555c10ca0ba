"""Run an exercise: a fresh stack, uploads and jobs, harm, healing, and the audit of what is left."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from lab.chaos.audit import ChaosReport, Verdict, judge
from lab.chaos.evidence import collect, wait_quiet
from lab.chaos.plan import Harm, Plan, Rates, chaos_plan
from lab.chaos.stack import ChaosStack
from lab.chaos.traffic import Ledger, Traffic
from lab.tiny_model import tiny_model
from model.checkpoints.bundle import save_checkpoint

__all__ = ["chaos_table", "run_chaos"]

Report = Callable[[str], None]

_START_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
_TELL_SECONDS = 10.0


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
        minutes: How long things are sent and go wrong.
        seed: Of the plan.
        folder: An empty folder; the log of the stack stays in it.
        report: Told how it goes.
        model: Checkpoint of the jobs; None makes a tiny one.
        rates: How much of what in a minute.
        quiet_seconds: Patience after the healing with what was accepted.

    Raises:
        AppaError: If the stack does not start.
    """
    plan = chaos_plan(minutes, seed, rates)
    if model is None:
        model = str(folder / "tiny")
        save_checkpoint(tiny_model(), Path(model))
    ledger = Ledger()
    with ChaosStack(folder, model, watermark=plan.watermark) as stack:
        stack.wait_ready(_START_SECONDS)
        report(_beginning(plan, stack))
        traffic = Traffic(stack.url, plan, ledger)
        traffic.start()
        _do_harm(plan, stack, ledger, report)
        stack.heal()
        report(f"healed after {_done(stack)}; {ledger.accepted} accepted")
        answered = traffic.finish(_ANSWER_SECONDS)
        stuck = wait_quiet(stack.url, quiet_seconds)
        report("quiet: all has ended" if not stuck else "; ".join(stuck))
        verdict = judge(ledger, collect(stack, ledger, stuck))
        if not answered:
            verdict.findings.append("senders were not answered although all was healed")
        return _report(plan, stack, ledger, verdict)


def _beginning(plan: Plan, stack: ChaosStack) -> str:
    if not stack.can_fill:
        disk = "the disk is not filled: no file system can be mounted here"
    elif plan.watermark:
        disk = "the data lie on a tmpfs, with a watermark"
    else:
        disk = "the data lie on a tmpfs, without a watermark"
    sent = f"{len(plan.sendings)} uploads and {len(plan.orders)} jobs planned"
    return f"seed {plan.seed}: {sent}, {len(plan.faults)} faults; {disk}"


def _do_harm(plan: Plan, stack: ChaosStack, ledger: Ledger, report: Report) -> None:
    began = told = time.monotonic()
    waiting = list(plan.faults)
    while (now := time.monotonic()) - began < plan.seconds:
        stack.tend()
        while waiting and waiting[0].at <= now - began:
            fault = waiting.pop(0)
            done = "" if stack.harm(fault) else " (nothing to hit)"
            lasts = f" for {fault.seconds:.1f} s" if fault.seconds else ""
            report(f"{now - began:6.1f} s  {fault.harm} {fault.part}{lasts}{done}")
        if now - told > _TELL_SECONDS:
            told = now
            report(f"{now - began:6.1f} s  {len(ledger.uploads)} sent, {ledger.accepted} accepted")
        time.sleep(0.05)


def _done(stack: ChaosStack) -> str:
    return ", ".join(f"{count} x {harm}" for harm, count in sorted(stack.harmed.counts.items()))


def _report(plan: Plan, stack: ChaosStack, ledger: Ledger, verdict: Verdict) -> ChaosReport:
    return ChaosReport(
        seed=plan.seed,
        minutes=round(plan.seconds / 60.0, 3),
        accepted=verdict.accepted,
        ended=verdict.ended,
        lost=verdict.lost,
        doubled=verdict.doubled,
        wrongly_rejected=verdict.wrongly_rejected,
        kills=stack.harmed.kills,
        full_disks=stack.harmed.counts.get(Harm.FULL_DISK, 0),
        broker_cuts=stack.harmed.broker_cuts,
        mutated=sum(sent.content.mutated for sent in ledger.uploads.values()),
        http_5xx=len(ledger.faults),
        findings=tuple([*verdict.findings, *(f"http 5xx: {told}" for told in ledger.faults)]),
    )


def chaos_table(found: ChaosReport) -> Table:
    """Return the numbers of a report as a table."""
    table = Table("", "", show_header=False, title=f"chaos, seed {found.seed}")
    for name, value in found.as_json().items():
        if name not in ("findings", "seed"):
            table.add_row(name.replace("_", " "), str(value))
    return table
