"""Give an analysis to another weather model: `appa export --for MODEL ANALYSIS OUT`."""

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.console import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    err,
    gateway_client,
    key_table,
    mebibytes,
    out,
    print_json,
    utc_time,
)
from model.domain.errors import InvalidInput

if TYPE_CHECKING:
    from worker.downstream.export import ExportPlan

__all__ = ["export_app"]

export_app = typer.Typer(add_completion=False)


@export_app.command()
def export(
    analysis: Annotated[str, typer.Argument(help="Id of an analysis, or its NetCDF file.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the files.")],
    model: Annotated[str, typer.Option("--for", help="aifs, graphcast, fcn3, pangu or aurora.")],
    previous: Annotated[
        str | None, typer.Option(help="Analysis six hours earlier, if the first has no such hour.")
    ] = None,
    fill: Annotated[
        list[Path] | None,
        typer.Option(help="NetCDF or GRIB that holds what analyses lack; may be repeated."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Valid time (UTC); by default the last of the analysis.")
    ] = None,
    member: Annotated[
        int | None, typer.Option(min=0, help="Take this member instead of the mean.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say where each field would come from; write nothing.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write the input of another weather model: its variables, levels, grid and times.

    What an analysis lacks is named, and read only from the files given by --fill. Exit status: 0
    written, or with --check complete; 1 with --check if fields are missing; 2 otherwise.
    """
    from worker.downstream.export import write_export

    with TemporaryDirectory(prefix="appa-export-") as scratch:
        names = [name for name in (analysis, previous) if name is not None]
        files = [_file(name, Path(scratch) / str(i), url, key) for i, name in enumerate(names)]
        plan = _plan(model, files, fill or [], utc_time(time) if time else None, member)
        if check:
            _show(plan, as_json)
            raise typer.Exit(1 if plan.missing else 0)
        written = write_export(plan, folder)
    if as_json:
        print_json({"files": [str(path) for path in written], **plan.provenance()})
        return
    for path in written:
        out.print(f"{path}  {mebibytes(path.stat().st_size)}", highlight=False, soft_wrap=True)
    if "simulated" in str(plan.attributes.get("flags", "")):
        err.print("the weather of this analysis is simulated", highlight=False)


def _file(name: str, folder: Path, url: str, key: str | None) -> Path:
    """Return the local file `name`, or download the file of the analysis of that id."""
    from appa_client.files import netcdf_name

    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix or "/" in name:
        raise InvalidInput(f"Expected the id of an analysis or a file; '{name}' does not exist.")
    with gateway_client(url, key) as client:
        found = client.analysis(name)
        return client.fetch(found.id, folder, names=[netcdf_name(found)])[0]


def _plan(
    model: str, files: list[Path], fill: list[Path], time: datetime | None, member: int | None
) -> "ExportPlan":
    from worker.downstream.export import plan_export
    from worker.downstream.models import model_named
    from worker.downstream.sources import MEAN, AnalysisFields, open_fill

    wanted = model_named(model)
    opened = [AnalysisFields(path, MEAN if member is None else member) for path in files]
    first = opened[0]
    if time is not None and time not in first.times:
        raise InvalidInput(
            f"Expected a valid time of '{first.name}', {first.times[0]:%Y-%m-%dT%H:%MZ} to "
            f"{first.times[-1]:%Y-%m-%dT%H:%MZ}; got {time:%Y-%m-%dT%H:%MZ}."
        )
    sources = [*opened, *(open_fill(path) for path in fill)]
    return plan_export(wanted, time or first.times[-1], sources, first.attributes)


def _show(plan: "ExportPlan", as_json: bool) -> None:
    """Print each field with its source at each time."""
    missing: dict[str, list[Any]] = {
        f"{t:%Y-%m-%dT%H:%MZ}": [f.name for f in fields] for t, fields in plan.missing.items()
    }
    if as_json:
        print_json({**plan.provenance(), "missing": missing})
        return
    from worker.downstream.export import described

    table = key_table("source", "time", "fields", keys=("time",), title=plan.model.title)
    found: dict[tuple[str, datetime], list[Any]] = {}
    for (wanted, when), source in plan.chosen.items():
        found.setdefault((source.name, when), []).append(wanted)
    for (name, when), fields in found.items():
        table.add_row(name, f"{when:%m-%d %H:%M}", described(fields))
    for when, fields in plan.missing.items():
        table.add_row("[red]missing[/]", f"{when:%m-%d %H:%M}", described(fields))
    out.print(table)
