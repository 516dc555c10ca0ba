"""`appa webhooks`: who is told of events over HTTP, and what became of each message."""

from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

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
from service.webhook_views import WebhookView
from worker.jobs.event_log import EventType
from worker.jobs.webhook import Delivery

__all__ = ["app"]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

WebhookId = Annotated[str, typer.Argument(help="Id of the webhook, from the list.")]


def _webhook_table(webhooks: list[WebhookView]) -> Table:
    table = Table("id", "url", "events", "created", "disabled", "description")
    for hook in webhooks:
        texts = (hook.disabled, hook.description)
        created = f"{hook.created:%Y-%m-%d %H:%M}"
        table.add_row(
            hook.id, escape(hook.url), ", ".join(hook.events), created, *map(escape, texts)
        )
    return table


def _time(time: datetime | None) -> str:
    return f"{time:%m-%d %H:%M:%S}" if time else ""


def _outcome(delivery: Delivery) -> str:
    """How the newest attempt ended."""
    if not delivery.attempts:
        return ""
    last = delivery.attempts[-1]
    status = "" if last.status is None else str(last.status)
    return escape(", ".join(t for t in (status, last.error, f"{last.milliseconds} ms") if t))


def _delivery_table(deliveries: list[Delivery]) -> Table:
    colours = {"delivered": "green", "failed": "red"}
    columns = ("event", "type", "queued (UTC)", "state", "attempts", "last attempt")
    table = Table(*columns, "next attempt (UTC)")
    for one in deliveries:
        table.add_row(
            one.event_id,
            one.type.value,
            _time(one.created),
            f"[{colours.get(one.state, 'default')}]{one.state.value}[/]",
            str(len(one.attempts)),
            _outcome(one),
            _time(one.next_attempt),
        )
    return table


@app.command("list")
def list_webhooks(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the webhooks, oldest first."""
    with gateway_client(url, key) as client:
        found = client.webhooks()
    if as_json:
        print_json(list(found))
    else:
        out.print(_webhook_table(found) if found else "no webhooks; see: appa webhooks add --help")


@app.command()
def add(
    address: Annotated[str, typer.Argument(help="Where events are posted to (http or https).")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    event: Annotated[
        list[EventType] | None,
        typer.Option(help="What to tell; may be given several times. Published analyses if not."),
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Subscribe an address to events from now on; its secret is shown once."""
    events = event or [EventType.ANALYSIS_PUBLISHED]
    with gateway_client(url, key) as client:
        made = client.create_webhook(address, events, description=description)
    if as_json:
        print_json(made)
        return
    typer.echo(made.secret)
    told = f"Webhook {made.id}. Its receiver verifies messages with this secret: it is not shown "
    err.print(f"{told}again.", markup=False)


@app.command()
def remove(
    webhook_id: WebhookId, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """End a webhook; messages that still wait are never sent."""
    with gateway_client(url, key) as client:
        gone = client.delete_webhook(webhook_id)
    if as_json:
        print_json(gone)
    else:
        out.print(f"removed {gone.id} ({gone.url})", markup=False, soft_wrap=True)


@app.command()
def deliveries(
    webhook_id: WebhookId,
    url: Url = DEFAULT_URL,
    key: Key = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most messages shown.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the newest messages of a webhook: delivered, failed, or when they are tried again."""
    with gateway_client(url, key) as client:
        found = client.deliveries(webhook_id, limit)
    if as_json:
        print_json(list(found))
    else:
        out.print(_delivery_table(found) if found else "no messages yet")
