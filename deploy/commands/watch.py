"""`appa watch JOB`: follows a job to its end."""

from typing import Annotated

import typer

from deploy.gateway_access import DEFAULT_URL, AsJson, Key, Url, gateway_client
from deploy.job_display import follow_on_terminal

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def watch(
    job_id: Annotated[str, typer.Argument(help="Id of the job.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job to its end; with --json, one event a line. Status 1 if it does not succeed."""
    with gateway_client(url, key) as client:
        follow_on_terminal(client, job_id, as_json=as_json)
