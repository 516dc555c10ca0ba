"""`appa cycles`: which hours are analysed, why they are as they are, and made again."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from deploy.cycle_display import change_line, cycle_table, show_explanation
from deploy.gateway_access import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    err,
    gateway_client,
    out,
    print_json,
)
from deploy.times import utc_time
from worker.jobs.cycle import CycleRecord, CycleState, Flavour, cycle_key
from worker.jobs.cycle_policy import read_policy
from worker.jobs.layout import Layout

__all__ = ["app"]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

TEMPLATE = Path(__file__).parents[1] / "cycles.yaml"
Hour = Annotated[str, typer.Argument(help="2003-10-01T06 or a key such as 20031001T06Z_final.")]
OfFlavour = Annotated[Flavour, typer.Option(help="Which analysis of the hour.")]


def _key(hour: str, flavour: Flavour) -> str:
    """The key meant by an hour, or the key itself."""
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
    known: dict[str, CycleRecord] = {}
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
    hour: Hour,
    url: Url = DEFAULT_URL,
    key: Key = None,
    flavour: OfFlavour = Flavour.FINAL,
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
    hour: Hour,
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
    data: Annotated[
        Path, typer.Option("--data", envvar="APPA_DATA_DIR", help="Data folder of the system.")
    ] = Path("appa-data"),
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
    temporary = target.with_suffix(".tmp")
    temporary.write_text(text)
    try:
        policy = read_policy(temporary)
    except BaseException:
        temporary.unlink()
        raise
    temporary.replace(target)
    if as_json and policy is not None:
        print_json(policy)
    else:
        out.print(f"wrote {target}", markup=False)
