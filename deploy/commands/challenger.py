"""`appa challenger`: the suite on trial beside the champion: how it compares; promote or drop it."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from appa_client import AppaClient, Challengers, Difference, Trial
from deploy.console import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    gateway_client,
    key_table,
    out,
    print_json,
    short_time,
)
from model.domain.errors import InvalidInput

__all__ = ["app", "difference_table", "show_challengers"]

app = typer.Typer(
    help="A second suite beside the champion: how it compares; promote or drop it.",
    no_args_is_help=True,
    add_completion=False,
)

POLICY = "what the policy says of itself"
SuiteArgument = Annotated[
    str | None, typer.Argument(help="Id of the challenger; by default the one that runs.")
]
Note = Annotated[str, typer.Option(help="Why; kept in the history.")]
_COLOURS = {"better": "green", "worse": "red"}


def difference_table(found: Iterable[Difference]) -> Table:
    """Return a table with one row for each group of values."""
    title = "Mean square error at withheld stations, challenger against champion"
    columns = ("network", "variables", "cycles", "values", "change", "95 % interval")
    table = Table(*columns, title=title)
    for one in found:
        interval = "" if one.low is None else f"{one.low:+.2f} to {one.high:+.2f} %"
        counts = (str(one.cycles), str(one.values))
        table.add_row(one.network, one.variables, *counts, f"{one.percent:+.2f} %", interval)
    return table


def show_challengers(found: Challengers, console: Console) -> None:
    """Print champion, challenger, its differences and the trials before."""
    since = f" since {short_time(found.champion.since)} UTC" if found.champion.since else ""
    console.print(f"champion: {found.champion.suite_id or POLICY}{since}", markup=False)
    if found.challenger is None:
        console.print("no challenger; name one in cycles.yaml under 'challenger'")
    else:
        _show_trial(found.challenger, console)
    if found.history:
        console.print(_history(found.history))


def _show_trial(trial: Trial, console: Console) -> None:
    cycles = ", ".join(f"{count} {state}" for state, count in sorted(trial.cycles.items()))
    console.print(f"challenger: {trial.suite_id}, {cycles or 'no cycle yet'}", markup=False)
    console.print(
        f"from {short_time(trial.first_time)}, compared from {short_time(trial.counted_from)}, "
        f"newest {short_time(trial.newest_time) or 'none'} UTC",
        markup=False,
    )
    if trial.note:
        console.print(f"waits: {trial.note}", markup=False)
    if trial.differences:
        console.print(difference_table(trial.differences))
    compared = trial.differences[0].cycles if trial.differences else 0
    colour = _COLOURS.get(trial.verdict, "default")
    console.print(
        f"verdict: [{colour}]{trial.verdict}[/] after {compared} cycles compared, of "
        f"{trial.least_cycles} at least"
    )


def _history(trials: Iterable[Trial]) -> Table:
    table = key_table("challenger", "ended", "outcome", "change", "note", keys=("challenger",))
    for trial in trials:
        change = f"{trial.differences[0].percent:+.2f} %" if trial.differences else ""
        ended = short_time(trial.ended, "%Y-%m-%d %H:%M")
        table.add_row(trial.suite_id, ended, trial.outcome or "", change, trial.note)
    return table


@app.command()
def status(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show the challenger, how it compares, and the trials before."""
    with gateway_client(url, key) as client:
        found = client.challengers()
    if as_json:
        print_json(found)
    else:
        show_challengers(found, out)


@app.command()
def promote(
    suite: SuiteArgument = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    note: Note = "",
    force: Annotated[
        bool, typer.Option(help="Also if it is worse, or has no analysis yet.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the challenger the champion; the next cycles go on from its analyses."""
    with gateway_client(url, key) as client:
        trial = client.promote_challenger(suite or _running(client), note=note, force=force)
    _tell(trial, as_json)


@app.command()
def drop(
    suite: SuiteArgument = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """End the trial of the challenger; the same suite gets no other one."""
    with gateway_client(url, key) as client:
        trial = client.drop_challenger(suite or _running(client), note=note)
    _tell(trial, as_json)


@app.command()
def revert(
    url: Url = DEFAULT_URL, key: Key = None, note: Note = "", as_json: AsJson = False
) -> None:
    """Make the suite champion again that was champion before the last promotion."""
    with gateway_client(url, key) as client:
        reign = client.revert_champion(note=note)
    if as_json:
        print_json(reign)
    else:
        out.print(f"champion: {reign.suite_id or POLICY}", markup=False)


def _running(client: AppaClient) -> str:
    found = client.challengers().challenger
    if found is None:
        raise InvalidInput(
            "Expected a challenger that runs; there is none. See: appa challenger status."
        )
    return found.suite_id


def _tell(trial: Trial, as_json: bool) -> None:
    if as_json:
        print_json(trial)
    else:
        out.print(f"{trial.suite_id} {trial.outcome}", markup=False)
