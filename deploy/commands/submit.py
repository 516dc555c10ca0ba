"""`appa submit KIND`: queues a job on a running system."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.gateway_access import DEFAULT_URL, AsJson, Key, Url, gateway_client, out, print_json
from deploy.job_display import follow_on_terminal

app = typer.Typer(help=__doc__, add_completion=False)


class Kind(StrEnum):
    """Kinds of job."""

    FILTERING = "filtering"
    FORECAST = "forecast"
    REANALYSIS = "reanalysis"


def _assignments(pairs: list[str]) -> dict[str, Any]:
    """`seed=3` and `observations.networks=["synop"]` as nested values; bare words are text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found:
            raise typer.BadParameter(f"Expected FIELD=VALUE; got '{pair}'.", param_hint="--set")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *path, last = name.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return values


def _specification(
    file: Path | None,
    kind: Kind,
    given: dict[str, Any],
    selection: dict[str, Any],
    assignments: list[str],
) -> dict[str, Any]:
    """The body of the request: a file, then options, then `--set`; the later ones count."""
    body: dict[str, Any] = json.loads(file.read_text()) if file else {}
    body |= {"kind": kind.value, **{k: v for k, v in given.items() if v is not None}}
    extra = _assignments(assignments)
    chosen = {k: v for k, v in selection.items() if v is not None}
    chosen |= extra.pop("observations", {})
    if chosen:
        body["observations"] = {**body.get("observations", {}), **chosen}
    return body | extra


@app.command()
def submit(
    kind: Annotated[Kind, typer.Argument(help="What to compute.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    valid_time: Annotated[
        str | None, typer.Option(help="Analysis time, or start of a forecast (full hour, UTC).")
    ] = None,
    start: Annotated[str | None, typer.Option(help="First hour of a reanalysis.")] = None,
    end: Annotated[str | None, typer.Option(help="Last hour of a reanalysis.")] = None,
    window_hours: Annotated[int | None, typer.Option(help="States in a filtering window.")] = None,
    lead_hours: Annotated[int | None, typer.Option(help="Length of a forecast.")] = None,
    members: Annotated[int | None, typer.Option(help="Ensemble members.")] = None,
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same members.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint; see /v1/capabilities.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Formats, with commas between.")] = None,
    networks: Annotated[str | None, typer.Option(help="Networks, with commas between.")] = None,
    cut_off: Annotated[str | None, typer.Option(help="Last arrival accepted (UTC).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field: FIELD=VALUE (JSON).")
    ] = None,
    spec: Annotated[Path | None, typer.Option(exists=True, help="JSON file to start from.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with it gives the same job.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Follow the job to its end.")] = False,
    fetch: Annotated[Path | None, typer.Option(help="Then download its files here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a filtering, forecast or reanalysis job."""
    given = {
        "valid_time": valid_time,
        "start": start,
        "end": end,
        "window_hours": window_hours,
        "lead_hours": lead_hours,
        "members": members,
        "steps": steps,
        "seed": seed,
        "model": model,
        "outputs": outputs.split(",") if outputs else None,
    }
    selection = {"networks": networks.split(",") if networks else None, "cut_off": cut_off}
    body = _specification(spec, kind, given, selection, set_ or [])
    with gateway_client(url, key) as client:
        job = client.submit(body, idempotency_key=idempotency_key)
        if watch or fetch:
            job = follow_on_terminal(client, job.id, as_json=as_json)
        elif as_json:
            print_json(job)
        else:
            out.print(f"{job.state.value} {job.id} → analysis {job.analysis_id}", soft_wrap=True)
            out.print(f"follow it with: appa watch {job.id}", soft_wrap=True)
        if fetch:
            for path in client.fetch(job.analysis_id, fetch):
                typer.echo(str(path), err=as_json)
