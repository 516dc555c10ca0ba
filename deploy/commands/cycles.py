"""`appa cycles`: list, watch, explain and rerun the hourly analyses; `appa deny`: one without a network."""

import math
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appa_client import (
    Analysis,
    AppaClient,
    Cycle,
    CycleExplanation,
    CycleState,
    Flavour,
    GatewayError,
    cycle_key,
)
from deploy.commands.client import follow_on_terminal
from deploy.console import (
    DEFAULT_DATA,
    DEFAULT_URL,
    AsJson,
    DataFolder,
    Key,
    Url,
    duration,
    err,
    gateway_client,
    key_table,
    out,
    print_json,
    short_time,
    utc_time,
)
from model.domain.errors import InvalidInput
from model.domain.files import replaced_file
from worker.contract.layout import Layout
from worker.cycling.policy import read_policy

if TYPE_CHECKING:
    import pyarrow as pa

    from worker.results.verification.comparison import ColdWindowComparison

_REMARK = 31
"""Width of remarks in characters: that of an analysis id."""

__all__ = ["app", "change_line", "cycle_table", "deny_app", "show_explanation"]

_COLOURS = {
    CycleState.PUBLISHED: "green",
    CycleState.FAILED: "red",
    CycleState.SKIPPED: "yellow",
    CycleState.CANCELLED: "yellow",
    CycleState.SUBMITTED: "cyan",
}


def _state(record: Cycle) -> str:
    return f"[{_COLOURS.get(record.state, 'default')}]{record.state.value}[/]"


def _remark(record: Cycle) -> str:
    caught_up = "caught up" if record.caught_up else ""
    return "; ".join(text for text in (caught_up, record.message) if text)


def cycle_table(records: list[Cycle]) -> Table:
    """Return a table with one row for each cycle; remarks are below the id of the analysis.

    The cut-off is relative to the valid time; later times are relative to the cut-off.
    """
    columns = ("cycle", "state", "rev", "cut-off", "ready", "analysis, remark")
    table = key_table(*columns, keys=("cycle", "state", "analysis, remark"))
    for record in records:
        decided = duration(record.behind_seconds) if record.decided else ""
        fresh = duration(record.freshness_seconds)
        below = (record.analysis_id, *textwrap.wrap(_remark(record), _REMARK))
        table.add_row(
            record.id,
            _state(record),
            str(record.revision),
            f"+{duration((record.cut_off - record.valid_time).total_seconds())}",
            fresh or decided,
            escape("\n".join(line for line in below if line)),
        )
    return table


def change_line(record: Cycle) -> str:
    """Return the line printed when a watched cycle has changed its state."""
    fresh = record.freshness_seconds
    what = {
        CycleState.WAITING: f"cut-off at {short_time(record.cut_off)}",
        CycleState.SUBMITTED: record.job_id,
        CycleState.PUBLISHED: f"{record.analysis_id}, {duration(fresh)} after the cut-off",
    }.get(record.state, "")
    remark = _remark(record)
    rest = "  ".join(text for text in (what, f"({remark})" if remark else "") if text)
    return f"{record.id}  v{record.revision}  {_state(record)}  {rest}".rstrip()


def show_explanation(found: CycleExplanation, console: Console) -> None:
    """Print the explanation as paragraphs and tables."""
    console.print(cycle_table([found.cycle]))
    if found.cycle.analysis_id and found.cycle.analysis_id in found.revisions:
        window = f"({short_time(found.window_start)}, {short_time(found.window_end)}]"
        background = ", ".join(
            f"{k} {v}" for k, v in found.background.items() if v not in ("", None)
        )
        console.print(
            f"window {window}, arrivals to {short_time(found.cycle.cut_off)} UTC", markup=False
        )
        console.print(f"background: {background or 'none'}", markup=False)
        console.print(f"flags: {', '.join(found.flags) or 'none'}", markup=False)
        console.print(f"analyses of this time: {', '.join(found.revisions)}", markup=False)
    else:
        console.print("No analysis of it is published.")
        return
    if found.used is None:
        counts = ", ".join(f"{name} {n}" for name, n in found.outcomes.items())
        console.print(f"values by outcome: {counts} (no feedback file was asked for)", markup=False)
        return
    console.print(_outcomes(found))
    if found.changed is not None:
        console.print(_changed(found))


def _outcomes(found: CycleExplanation) -> Table:
    table = Table("network", "outcome", "values", "why", title="Observations of the window")
    for network, count in (found.used or {}).items():
        table.add_row(network, "[green]used[/]", str(count), "")
    for late in found.late:
        why = f"arrived {short_time(late.first)} to {short_time(late.last)}, after the cut-off"
        table.add_row(late.network, "late", str(late.count), why)
    for entry in found.rejected:
        table.add_row(entry.network, entry.outcome, str(entry.count), entry.meaning)
    return table


def _changed(found: CycleExplanation) -> Table:
    change = found.changed
    assert change is not None  # noqa: S101  # checked by the caller
    title = f"Against {change.from_flavour} v{change.from_revision}: {change.kept} values kept"
    table = Table("network", "change", "values", "why", title=title)
    for network, count in change.added.items():
        table.add_row(network, "added", str(count), "late or rejected before")
    for entry in change.dropped:
        table.add_row(entry.network, f"dropped: {entry.outcome}", str(entry.count), entry.meaning)
    return table


app = typer.Typer(
    help="List, watch, explain and rerun the hourly analyses.",
    no_args_is_help=True,
    add_completion=False,
)

TEMPLATE = Path(__file__).parents[1] / "cycles.yaml"
ValidTime = Annotated[
    str, typer.Argument(help="2003-10-01T06 or a key such as 20031001T06Z_final.")
]
FlavourOption = Annotated[Flavour, typer.Option(help="Which analysis of the hour.")]


def _key(hour: str, flavour: Flavour) -> str:
    """Return the key of a cycle, given by its hour or by the key itself."""
    if hour.endswith(tuple(f"_{name}" for name in Flavour)):
        return hour
    return cycle_key(utc_time(hour), flavour)


@app.command("list")
def list_cycles(
    url: Url = DEFAULT_URL,
    key: Key = None,
    state: Annotated[CycleState | None, typer.Option(help="Only in this state.")] = None,
    flavour: Annotated[Flavour | None, typer.Option(help="Only these.")] = None,
    start: Annotated[str | None, typer.Option(help="Earliest valid time (UTC).")] = None,
    end: Annotated[str | None, typer.Option(help="Latest valid time (UTC).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Most cycles shown.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List cycles, latest valid time first."""
    first, last = (utc_time(text) if text else None for text in (start, end))
    with gateway_client(url, key) as client:
        found = client.cycles(
            state=state, flavour=flavour, valid_from=first, valid_to=last, limit=limit
        )
    if as_json:
        print_json(list(found))
    else:
        out.print(cycle_table(found) if found else "no cycles; see: appa cycles init")


@app.command()
def watch(
    url: Url = DEFAULT_URL,
    key: Key = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Pause between questions.")] = 2.0,
    last: Annotated[int, typer.Option(min=0, help="Cycles shown at the beginning.")] = 4,
    until: Annotated[
        str | None, typer.Option(help="Ends when this cycle has ended: an hour or a key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell every move of a cycle as it happens; Ctrl-C ends it."""
    stop_at = _key(until, Flavour.FINAL) if until else None
    known: dict[str, Cycle] = {}
    with gateway_client(url, key) as client:
        while True:
            found = list(reversed(client.cycles(limit=200)))
            shown = found if known else found[len(found) - last :]
            for record in shown:
                if known.get(record.id) != record:
                    if as_json:
                        print_json(record)
                    else:
                        out.print(change_line(record), soft_wrap=True)
            known = {record.id: record for record in found}
            if stop_at is not None and stop_at in known and known[stop_at].done:
                return
            time.sleep(seconds)


@app.command()
def explain(
    hour: ValidTime,
    url: Url = DEFAULT_URL,
    key: Key = None,
    flavour: FlavourOption = Flavour.FINAL,
    as_json: AsJson = False,
) -> None:
    """What the analysis of an hour used, what was late, what was rejected and why."""
    with gateway_client(url, key) as client:
        found = client.explain_cycle(_key(hour, flavour))
    if as_json:
        print_json(found)
    else:
        show_explanation(found, out)


@app.command()
def rerun(
    hour: ValidTime,
    url: Url = DEFAULT_URL,
    key: Key = None,
    cut_off: Annotated[
        str | None, typer.Option(help="Last arrival accepted (UTC); all there is when absent.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Asked again under the same name, nothing is made twice.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the final analysis of an hour again, as its next revision."""
    limit = utc_time(cut_off) if cut_off else None
    with gateway_client(url, key) as client:
        record = client.rerun_cycle(
            _key(hour, Flavour.FINAL), limit, idempotency_key=idempotency_key
        )
    if as_json:
        print_json(record)
    else:
        out.print(change_line(record), soft_wrap=True)


@app.command()
def init(
    data: DataFolder = DEFAULT_DATA,
    start: Annotated[
        str | None, typer.Option(help="First cycle (full hour, UTC); the present hour if absent.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a policy that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented cycles.yaml; running schedulers begin to cycle at once."""
    target = Layout(data).cycles_file
    if target.exists() and not force:
        err.print(f"{target} is there already; --force replaces it.", markup=False)
        raise typer.Exit(1)
    present = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    first = utc_time(start) if start else present
    target.parent.mkdir(parents=True, exist_ok=True)
    text = TEMPLATE.read_text().format(start=f"{first:%Y-%m-%dT%H:%M:%SZ}")
    with replaced_file(target) as temporary:
        temporary.write_text(text)
        policy = read_policy(temporary)
    if as_json and policy is not None:
        print_json(policy)
    else:
        out.print(f"wrote {target}", markup=False)


deny_app = typer.Typer(add_completion=False)


@deny_app.command()
def deny(
    network: Annotated[str, typer.Argument(help="What is left out: synop, temp, satellite …")],
    hour: ValidTime,
    url: Url = DEFAULT_URL,
    key: Key = None,
    flavour: FlavourOption = Flavour.FINAL,
    as_json: AsJson = False,
) -> None:
    """Make the analysis of a cycle again without a network: what was it worth?

    Both are compared at the stations that were withheld from both. An earlier analysis that the
    cycle continues has seen the network: the answer is what its new values were worth.
    """
    # Only this command needs pandas and pyarrow.
    from worker.results.verification.comparison import compare

    with gateway_client(url, key) as client, TemporaryDirectory(prefix="appa-deny-") as folder:
        cycle = client.cycle(_key(hour, flavour))
        if not cycle.analysis_id:
            raise InvalidInput(f"Expected a cycle with an analysis; '{cycle.id}' has none yet.")
        full = client.analysis(cycle.analysis_id)
        body = full.spec.model_dump(mode="json")
        chosen = body.get("observations") or {}
        body["observations"] = chosen | {"deny": [*(chosen.get("deny") or []), network]}
        body["outputs"] = ["feedback"]
        asked = client.submit(body, idempotency_key=f"deny:{full.id}:{network}")
        job = (
            client.wait(asked.id)
            if as_json
            else follow_on_terminal(client, asked.id, as_json=False)
        )
        if job.error is not None:
            raise GatewayError(f"The analysis without {network} failed: {job.error.message}")
        made = client.analysis(job.analysis_id)
        with_it, without = (_feedback(client, one, Path(folder)) for one in (full, made))
    found = compare(full.id, with_it, without, full.valid_time)
    if found is None:
        raise InvalidInput(
            f"Expected stations that were withheld from '{full.id}'; there are none. Set 'withhold' "
            "in cycles.yaml."
        )
    estimate = full.scores.get("impact", {}).get(network)
    change = math.exp(-found.ratio) - 1
    if as_json:
        about = {"network": network, "cycle": cycle.id, "analysis_id": job.analysis_id}
        lines = [
            {"network": e.network, "variable": e.variable, "count": e.count}
            | {"error": e.cycle, "error_without": e.cold}
            for e in found.errors
        ]
        print_json(about | {"estimate": estimate, "change_without": change, "errors": lines})
        return
    out.print(_denied(found, f"{cycle.id} without {network}"))
    out.print(f"without {network} errors at withheld stations change by {100 * change:+.1f} %")
    if estimate is not None:
        out.print(f"estimate of the cycle: it took {100 * estimate:.1f} % of their squares away")


def _denied(found: "ColdWindowComparison", title: str) -> Table:
    table = Table("network", "variable", "values", "error", "without", title=title)
    for line in found.errors:
        numbers = (str(line.count), f"{line.cycle:.4g}", f"{line.cold:.4g}")
        table.add_row(line.network, line.variable, *numbers)
    return table


def _feedback(client: AppaClient, analysis: Analysis, folder: Path) -> "pa.Table":
    """Return the feedback table of a published analysis."""
    import pyarrow.parquet as pq

    names = [f.name for f in analysis.files if f.role == "feedback"]
    wanted = [name for name in names if name.endswith(".parquet")]
    if not wanted:
        raise InvalidInput(
            f"Expected the feedback of '{analysis.id}'. Add 'feedback' to the outputs in cycles.yaml."
        )
    [path] = client.fetch(analysis.id, folder / analysis.id, names=wanted)
    return pq.read_table(path)
