"""`appa keys`: the API keys of a data folder."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deploy.gateway_access import AsJson, err, out, print_json
from model.domain.errors import AppaError
from service.keys import ApiKey, KeyFile, Scope
from worker.jobs.layout import Layout

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

DataDir = Annotated[Path, typer.Option(envvar="APPA_DATA_DIR", help="Data folder of the gateway.")]
DATA_DIR = Path("appa-data")


def _keys(data_dir: Path) -> KeyFile:
    return KeyFile(Layout(data_dir).keys_file)


def _shown(key: ApiKey) -> dict[str, object]:
    """A key without its hash."""
    return key.model_dump(mode="json", exclude={"sha256"}) | {"scopes": sorted(key.scopes)}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be given several times.")],
    data_dir: DataDir = DATA_DIR,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it ends.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help="0: no limit.")] = None,
    queued_jobs: Annotated[int | None, typer.Option(min=0, help="0: no limit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key; it is shown once and only its hash is kept."""
    secret, key = _keys(data_dir).create(
        name,
        scope,
        expires=datetime.now(UTC) + timedelta(days=days) if days else None,
        requests_per_minute=requests_per_minute,
        queued_jobs=queued_jobs,
    )
    if as_json:
        print_json({"key": secret, **_shown(key)})
        return
    typer.echo(secret)
    err.print(f"Key {key.id} for '{name}'. Keep it: it is not shown again.", markup=False)


@app.command("list")
def list_keys(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List the keys."""
    keys = sorted(_keys(data_dir).all().values(), key=lambda k: k.created)
    if as_json:
        print_json([_shown(k) for k in keys])
        return
    table = Table("id", "name", "scopes", "created", "expires", "requests/min", "jobs")
    for k in keys:
        limits = ["" if v is None else str(v) for v in (k.requests_per_minute, k.queued_jobs)]
        expires = k.expires.isoformat(timespec="minutes") if k.expires else "never"
        scopes = ", ".join(sorted(k.scopes))
        table.add_row(k.id, k.name, scopes, f"{k.created:%Y-%m-%d}", expires, *limits)
    out.print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, from the list.")],
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Remove a key; running gateways refuse it within a second."""
    try:
        key = _keys(data_dir).revoke(key_id)
    except AppaError as error:
        err.print(error.message, markup=False)
        raise typer.Exit(1) from error
    if as_json:
        print_json(_shown(key))
    else:
        out.print(f"revoked {key.id} ({key.name})", markup=False)
