"""Describe the sources of observations of one installation, and keep them in `sources.json`.

A source is a subscription to the notifications of a WIS2 Global Broker. It is added on the machine
of the installation by whoever may write its data folder; nothing over HTTP changes it, because a
source decides which hosts the service connects to. Running feeds read the file again when it changes.
"""

import fcntl
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.domain.errors import ConfigurationError, InvalidInput, UnknownName
from model.domain.files import write_atomic
from model.domain.observations import REPORT_TYPES
from worker.contract.records import utc_now

__all__ = ["Broker", "Source", "SourceFile", "parse_broker", "valid_filter"]

_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")


class Broker(BaseModel):
    """Address of an MQTT broker, parsed from its URL."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int
    tls: bool
    websocket: bool
    path: str
    username: str
    password: str = Field(repr=False)


def parse_broker(url: str) -> Broker:
    """Return the parts of a broker's URL: `mqtt`, `mqtts` (TLS), `ws` or `wss` (websockets).

    Raises:
        InvalidInput: If it is none of these or has no host.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname:
        shown = re.sub(r"//[^@/]*@", "//…@", url)
        raise InvalidInput(
            f"Expected mqtt://, mqtts://, ws:// or wss:// with a host, such as "
            f"mqtts://everyone:everyone@globalbroker.example.org:8883; got '{shown}'.",
            field="broker",
        )
    return Broker(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        tls=parts.scheme in ("mqtts", "wss"),
        websocket=parts.scheme in ("ws", "wss"),
        path=parts.path or "/mqtt",
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def valid_filter(topic: str) -> bool:
    """Return whether a text is an MQTT topic filter: `#` last, `+` and `#` alone in their level."""
    levels = topic.split("/")
    if not topic or len(topic.encode()) > 65_535 or "\0" in topic:
        return False
    if any("#" in level and level != "#" or "+" in level and level != "+" for level in levels):
        return False
    return "#" not in levels[:-1]


class Source(BaseModel):
    """One subscription: what is asked of which broker, what may be fetched, within which bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Unique in the installation; lower case, digits, `-`, `_`.")
    broker: str = Field(
        repr=False, description="`mqtts://user:password@host:port`; `mqtt`, `ws`, `wss` likewise."
    )
    topics: list[str] = Field(min_length=1, max_length=50, description="MQTT topic filters.")
    hosts: list[str] = Field(
        default=[],
        max_length=100,
        description="Hosts that data may be fetched from, such as `cache.example.org` or "
        "`*.example.org`; without any, every host on the public internet.",
    )
    private: bool = Field(
        default=False,
        description="Whether `hosts` may lie in private networks.",
    )
    protocol: Literal["5", "3.1.1"] = Field(default="5", description="Version of MQTT.")
    ca_file: str = Field(default="", description="Certificates to trust besides the system's.")
    client_id: str = Field(
        default_factory=lambda: f"appa-{secrets.token_hex(8)}",
        description="Names the session that the broker keeps while the feed is offline.",
    )
    session_hours: float = Field(
        default=24, gt=0, le=168, description="How long the broker is asked to keep the session."
    )
    in_flight: int = Field(
        default=100, ge=1, le=65_535, description="Notifications sent before one is confirmed."
    )
    report_type: str | None = Field(
        default=None, description="Network of reports in forms that name none."
    )
    max_bytes: int = Field(default=32 * 2**20, gt=0, description="Larger data are refused.")
    max_backlog: int = Field(
        default=10_000, ge=1, description="Notifications waiting here; then the broker keeps them."
    )
    fetches: int = Field(default=4, ge=1, le=64, description="Fetches at the same time.")
    timeout_seconds: float = Field(default=60, gt=0, le=3600, description="Of one fetch.")
    retry_seconds: float = Field(
        default=2.0, gt=0, description="Pause after the first failed fetch; it doubles."
    )
    retry_max_seconds: float = Field(default=600.0, gt=0, description="Longest pause.")
    give_up_hours: float = Field(
        default=24.0, gt=0, description="A fetch that failed for so long is given up."
    )
    created: datetime = Field(default_factory=utc_now, description="UTC.")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"expected lower-case letters, digits, '-' and '_'; got '{value}'")
        return value

    @field_validator("broker")
    @classmethod
    def _broker(cls, value: str) -> str:
        parse_broker(value)
        return value

    @field_validator("topics")
    @classmethod
    def _topics(cls, value: list[str]) -> list[str]:
        for topic in value:
            if not valid_filter(topic):
                raise ValueError(f"expected a topic filter such as cache/a/wis2/#; got '{topic}'")
        return value

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(f"expected a host name or '*.' and a domain; got '{host}'")
        return [host.lower() for host in value]

    @field_validator("report_type")
    @classmethod
    def _report_type(cls, value: str | None) -> str | None:
        if value is not None and value not in REPORT_TYPES:
            raise ValueError(f"expected one of {', '.join(sorted(REPORT_TYPES))}; got '{value}'")
        return value

    @property
    def sender(self) -> str:
        """Return the sender of this source's uploads, in place of the id of an API key."""
        return f"source:{self.name}"

    @property
    def address(self) -> str:
        """Return the broker's URL without user and password."""
        parts = urlsplit(self.broker)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def allows(self, host: str) -> bool:
        """Return whether the list of hosts allows fetching data from `host`."""
        name = host.lower().rstrip(".")
        return not self.hosts or any(
            name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self.hosts
        )


Sources = Annotated[dict[str, Source], Field(description="By name.")]


class SourceFile:
    """The sources of one data folder, in a file that only its owner may read.

    Arguments:
        path: `sources.json`; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> Sources:
        """Return the sources by name.

        Raises:
            ConfigurationError: If the file is damaged.
        """
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return {}
        try:
            found = [Source.model_validate(entry) for entry in json.loads(text)["sources"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"Expected the sources written by `appa sources add` in '{self.path}'; {error}."
            ) from error
        return {source.name: source for source in found}

    def get(self, name: str) -> Source:
        """Return one source.

        Raises:
            UnknownName: If there is none of that name.
        """
        return _known(self.all(), name)

    def add(self, **values: object) -> Source:
        """Add a source and return it; see `Source` for the values.

        Raises:
            InvalidInput: If a value is wrong, or the name is taken.
        """
        try:
            source = Source.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise InvalidInput(f"{place}: {message}.", field=place) from error
        with self._changing() as sources:
            if source.name in sources:
                raise InvalidInput(
                    f"Expected a new name; there is a source '{source.name}' already. Remove it "
                    "first: appa sources remove " + source.name,
                    field="name",
                )
            sources[source.name] = source
        return source

    def remove(self, name: str) -> Source:
        """Remove a source and return it.

        Raises:
            UnknownName: If there is none of that name.
        """
        with self._changing() as sources:
            _known(sources, name)
            return sources.pop(name)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Source]]:
        """Yield the sources under a lock, and write them back atomically at the end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sources = self.all()
            yield sources
            entries = [source.model_dump(mode="json") for source in sources.values()]
            write_atomic(self.path, json.dumps({"sources": entries}, indent=1), mode=0o600)


def _known(sources: dict[str, Source], name: str) -> Source:
    if name not in sources:
        known = ", ".join(sources) or "none"
        raise UnknownName(f"Expected the name of a source; got '{name}'. Known: {known}.")
    return sources[name]
