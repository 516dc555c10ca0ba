"""Administer access and notifications: `appa keys` and `appa webhooks`."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from appa_client import Delivery, EventType, Webhook
from deploy.console import (
    DEFAULT_DATA,
    DEFAULT_URL,
    AsJson,
    DataFolder,
    Key,
    Url,
    err,
    gateway_client,
    key_table,
    out,
    print_json,
    retry_each,
    short_time,
)
from model.domain.errors import AppaError
from service.audit import AuditLog
from service.keys import ApiKey, KeyFile, Scope
from worker.contract.layout import Layout

__all__ = ["keys_app", "webhooks_app"]

keys_app = typer.Typer(
    help="API keys of a data folder.", no_args_is_help=True, add_completion=False
)


def _keys(data_dir: Path) -> KeyFile:
    return KeyFile(Layout(data_dir).keys_file)


def _shown(key: ApiKey) -> dict[str, object]:
    """Return the fields of a key without its hashes."""
    hidden = {"sha256", "replaced_sha256"}
    return key.model_dump(mode="json", exclude=hidden) | {"scopes": sorted(key.scopes)}


DayLimit = Annotated[int | None, typer.Option(min=0, help="Most of a day (UTC); 0: no limit.")]


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be given several times.")],
    data_dir: DataFolder = DEFAULT_DATA,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it ends.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=0, help="0: no limit.")] = None,
    queued_jobs: Annotated[int | None, typer.Option(min=0, help="0: no limit.")] = None,
    bytes_per_day: DayLimit = None,
    rows_per_day: DayLimit = None,
    jobs_per_day: DayLimit = None,
    as_json: AsJson = False,
) -> None:
    """Create a key; it is shown once and only its hash is kept."""
    with _audited(data_dir, "create_key") as line:
        secret, key = _keys(data_dir).create(
            name,
            scope,
            expires=datetime.now(UTC) + timedelta(days=days) if days else None,
            requests_per_minute=requests_per_minute,
            queued_jobs=queued_jobs,
            bytes_per_day=bytes_per_day,
            rows_per_day=rows_per_day,
            jobs_per_day=jobs_per_day,
        )
        line["record"] = key.id
    if as_json:
        print_json({"key": secret, **_shown(key)})
        return
    typer.echo(secret)
    err.print(f"Key {key.id} for '{name}'. Keep it: it is not shown again.", markup=False)


@keys_app.command("list")
def list_keys(data_dir: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """List the keys with scopes, expiry and limits."""
    keys = sorted(_keys(data_dir).all().values(), key=lambda k: k.created)
    if as_json:
        print_json([_shown(k) for k in keys])
        return
    out.print(_key_table(keys))


def _key_table(keys: list[ApiKey]) -> Table:
    columns = ("id", "name", "scopes", "created", "expires", "req/min", "jobs")
    table = key_table(*columns, keys=("id", "created"))
    for k in keys:
        limits = ["" if v is None else str(v) for v in (k.requests_per_minute, k.queued_jobs)]
        expires = short_time(k.expires, "%Y-%m-%d %H:%M") or "never"
        scopes = ", ".join(sorted(k.scopes))
        table.add_row(k.id, escape(k.name), scopes, f"{k.created:%Y-%m-%d}", expires, *limits)
    return table


KeyId = Annotated[str, typer.Argument(help="Id of the key, from the list.")]


@contextmanager
def _audited(data_dir: Path, action: str, key_id: str = "") -> Iterator[dict[str, str]]:
    """Write a change of keys, done or refused, to the audit log that the gateway also writes.

    An `AppaError` is printed as a sentence and exits with 1.

    Yields:
        Fields of the log line: the caller sets `record`, the id of the key, once it is known.
    """
    line, status = {"record": key_id}, 500
    try:
        yield line
        status = 200
    except AppaError as error:
        status = 400
        err.print(error.message, markup=False)
        raise typer.Exit(1) from error
    finally:
        layout = Layout(data_dir)
        layout.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        audit = AuditLog(layout.audit_file)
        about = {"request_id": "", "trace_id": "", "address": ""}
        audit.write(key=f"local:{_user()}", action=action, **line, status=status, **about)
        audit.flush()


def _user() -> str:
    """Return who runs this command: the caller of `sudo`, else the user name, else the user id."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # in a container the user id may have no name
        return str(os.getuid())


@keys_app.command()
def rotate(
    key_id: KeyId,
    data_dir: DataFolder = DEFAULT_DATA,
    overlap_hours: Annotated[
        float, typer.Option(min=0, help="Hours for which the secret before is taken, too.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret, shown once; id, scopes and what it sent stay its own."""
    with _audited(data_dir, "rotate_key", key_id):
        secret, key = _keys(data_dir).rotate(key_id, timedelta(hours=overlap_hours))
    if as_json:
        print_json({"key": secret, **_shown(key)})
        return
    typer.echo(secret)
    until = key.replaced_until
    taken = f"until {until:%Y-%m-%d %H:%M} UTC" if until else "no longer"
    err.print(f"Key {key.id} for '{key.name}'. The secret before is taken {taken}.", markup=False)


@keys_app.command()
def change(
    key_id: KeyId,
    add: Annotated[list[Scope] | None, typer.Option(help="Scope to add; repeatable.")] = None,
    drop: Annotated[list[Scope] | None, typer.Option(help="Scope to take; repeatable.")] = None,
    bytes_per_day: DayLimit = None,
    rows_per_day: DayLimit = None,
    jobs_per_day: DayLimit = None,
    data_dir: DataFolder = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Change what a key may do and use; running gateways follow within a second."""
    with _audited(data_dir, "change_key", key_id):
        key = _keys(data_dir).change(
            key_id,
            add=add or (),
            drop=drop or (),
            bytes_per_day=bytes_per_day,
            rows_per_day=rows_per_day,
            jobs_per_day=jobs_per_day,
        )
    if as_json:
        print_json(_shown(key))
    else:
        out.print(f"{key.id} ({key.name}): {', '.join(sorted(key.scopes))}", markup=False)


@keys_app.command()
def me(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show what the key in use may do, its limits, and what it has used today."""
    with gateway_client(url, key) as client:
        found = client.key()
    if as_json:
        print_json(found)
        return
    table = Table("today", "used", "limit", "begins anew (UTC)", title=escape(found["name"]))
    for what, one in found["quotas"].items():
        reset = short_time(datetime.fromisoformat(one["reset"]))
        table.add_row(what, str(one["used"]), str(one["limit"] or "none"), reset)
    out.print(table)
    out.print(f"scopes: {', '.join(found['scopes'])}", markup=False)


@keys_app.command()
def revoke(key_id: KeyId, data_dir: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Remove a key; running gateways refuse it within a second."""
    with _audited(data_dir, "revoke_key", key_id):
        key = _keys(data_dir).revoke(key_id)
    if as_json:
        print_json(_shown(key))
    else:
        out.print(f"revoked {key.id} ({key.name})", markup=False)


webhooks_app = typer.Typer(
    help="Who is notified of events over HTTP; messages sent.",
    no_args_is_help=True,
    add_completion=False,
)

_TO_THE_SECOND = "%m-%d %H:%M:%S"
WebhookId = Annotated[str, typer.Argument(help="Id of the webhook, from the list.")]


def _webhook_table(webhooks: list[Webhook]) -> Table:
    columns = ("id", "url", "events", "created", "disabled", "description")
    table = key_table(*columns, keys=("id",))
    for hook in webhooks:
        texts = (hook.disabled, hook.description)
        created = f"{hook.created:%Y-%m-%d %H:%M}"
        table.add_row(
            hook.id, escape(hook.url), ", ".join(hook.events), created, *map(escape, texts)
        )
    return table


def _outcome(delivery: Delivery) -> str:
    """Return how the newest attempt of a delivery ended."""
    if not delivery.attempts:
        return ""
    last = delivery.attempts[-1]
    status = "" if last.status is None else str(last.status)
    return escape(", ".join(t for t in (status, last.error, f"{last.milliseconds} ms") if t))


def _delivery_table(deliveries: list[Delivery]) -> Table:
    colours = {"delivered": "green", "failed": "red"}
    columns = ("event", "type", "queued", "state", "tries", "last attempt", "next (UTC)")
    table = key_table(*columns, keys=("event", "state"))
    for one in deliveries:
        table.add_row(
            one.event_id,
            one.type,
            short_time(one.created, _TO_THE_SECOND),
            f"[{colours.get(one.state, 'default')}]{one.state}[/]",
            str(len(one.attempts)),
            _outcome(one),
            short_time(one.next_attempt, _TO_THE_SECOND),
        )
    return table


@webhooks_app.command("list")
def list_webhooks(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the webhooks of the gateway, oldest first."""
    with gateway_client(url, key) as client:
        found = client.webhooks()
    if as_json:
        print_json(list(found))
    else:
        out.print(_webhook_table(found) if found else "no webhooks; see: appa webhooks add --help")


@webhooks_app.command()
def add(
    address: Annotated[str, typer.Argument(help="Where events are posted to (http or https).")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    event: Annotated[
        list[EventType] | None,
        typer.Option(help="Events to send; repeatable. Default: published analyses."),
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
    text = f"Webhook {made.id}. Its receiver verifies messages with this secret, shown only once."
    err.print(text, markup=False)


@webhooks_app.command()
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


@webhooks_app.command()
def retry(
    webhook_id: WebhookId,
    events: Annotated[
        list[str] | None, typer.Argument(help="Ids of events; all given up when absent.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Send messages again that were given up; of the last 200. Status 1 if one is refused."""
    with gateway_client(url, key) as client:
        if not events:
            newest = client.deliveries(webhook_id, 200)
            events = [one.event_id for one in reversed(newest) if one.state == "failed"]
        retry_each(
            events,
            lambda event: client.retry_delivery(webhook_id, event).state,
            field="event_id",
            as_json=as_json,
        )


@webhooks_app.command()
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
