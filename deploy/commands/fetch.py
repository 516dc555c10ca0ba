"""`appa fetch ANALYSIS`: downloads the files of an analysis, resumed and checked."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

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
from service.client import AppaClient, NotFoundError

app = typer.Typer(help=__doc__, add_completion=False)


def _resolve(client: AppaClient, name: str, kind: str | None) -> str:
    """The analysis meant by an id of an analysis or a job, or by `latest`."""
    if name == "latest":
        found = client.analyses(kind=kind, latest=True)
        if not found:
            raise NotFoundError(
                "Expected a published analysis; there is none yet.", code="not_found"
            )
        return found[0].id
    return client.job(name).analysis_id if name.startswith("job-") else name


@app.command()
def fetch(
    analysis: Annotated[str, typer.Argument(help="Id of an analysis or job, or `latest`.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    to: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
    kind: Annotated[
        str | None, typer.Option(help="Kind of the latest: filtering, forecast, reanalysis.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only these files.")] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="Only these roles: data, feedback, quicklook.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download an analysis; what was received before an interruption is not fetched again."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with (
        gateway_client(url, key) as client,
        Progress(*columns, TransferSpeedColumn(), console=err, disable=as_json) as progress,
    ):
        analysis_id = _resolve(client, analysis, kind)
        tasks = {
            f.name: progress.add_task(f.name, total=f.size)
            for f in client.analysis(analysis_id).files
            if (not name or f.name in name) and (not role or f.role in role)
        }

        def show(file: str, done: int, total: int) -> None:
            progress.update(tasks[file], completed=done, total=total)

        paths = client.fetch(analysis_id, to, names=name, roles=role, on_bytes=show)
    if as_json:
        print_json({"analysis_id": analysis_id, "files": [str(p) for p in paths]})
    else:
        for path in paths:
            out.print(str(path), markup=False, highlight=False, soft_wrap=True)
