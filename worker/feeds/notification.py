"""Read and write WIS2 notification messages, and check the data they announce.

A message is a GeoJSON feature: who published which data when, where to fetch them, their checksum,
and small data themselves. See *WIS2 Notification Message Encoding* (Manual on WIS, WMO-No. 1060,
volume II, appendix F), https://wmo-im.github.io/wis2-notification-message

Centres omit different members. A member is required here if the standard requires it and this service
needs it; `metadata_id`, which many messages lack, is optional.
"""

import base64
import binascii
import hashlib
import json
import posixpath
import zlib
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from model.domain.errors import DecodeError, InvalidInput
from worker.observations.decoders.bufr.framing import NamedHeading

__all__ = [
    "CORE",
    "InlineContent",
    "Integrity",
    "MismatchedData",
    "Link",
    "Notification",
    "Properties",
    "parse",
]

CORE = "http://wis.wmo.int/spec/wnm/1/conf/core"
"""The conformance class of messages of version 1."""

INLINE_BYTES = 4096
"""Maximum size of inline data of a message in bytes, as encoded."""

MESSAGE_BYTES = 64 * 1024
"""Maximum length of a message that is parsed; the standard allows 8192 bytes."""

_DATA = ("update", "canonical")
_METHODS = Literal["sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"]


class MismatchedData(DecodeError):
    """Data that do not match the announcement: another checksum or size."""

    code = "integrity"


class _MessagePart(BaseModel):
    """Base of the parts: members that are not named here are allowed and not kept."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Integrity(_MessagePart):
    """The checksum of the data, base64."""

    method: _METHODS
    value: str = Field(min_length=1)

    @classmethod
    def of(cls, digest: bytes, method: _METHODS = "sha512") -> Self:
        """Return the checksum with these raw bytes."""
        return cls(method=method, value=base64.b64encode(digest).decode())

    def check(self, data: bytes) -> None:
        """Raise `MismatchedData` unless `data` have this checksum."""
        found = hashlib.new(self.method.replace("sha3-", "sha3_"), data).digest()
        try:
            expected = base64.b64decode(self.value, validate=True)
        except binascii.Error:
            expected = b""
        if found != expected:
            raise MismatchedData(
                f"Expected data with the {self.method} checksum '{self.value[:44]}'; got "
                f"'{base64.b64encode(found).decode()[:44]}' over {len(data)} bytes."
            )


class InlineContent(_MessagePart):
    """Data of a few kilobytes that a message carries inline, encoded."""

    encoding: Literal["utf-8", "base64", "gzip"]
    size: int = Field(ge=0, le=INLINE_BYTES)
    value: str = Field(max_length=INLINE_BYTES)

    def decode(self, limit: int) -> bytes:
        """Return the data.

        Arguments:
            limit: Maximum number of bytes after decompression.

        Raises:
            DecodeError: If they cannot be decoded or are larger.
        """
        if self.encoding == "utf-8":
            data = self.value.encode()
        else:
            try:
                data = base64.b64decode(self.value, validate=True)
            except binascii.Error as error:
                raise DecodeError(f"Expected inline content in base64; {error}.") from error
        if self.encoding == "gzip":
            data = _unpacked(data, limit)
        if len(data) > limit:
            raise DecodeError(f"Expected at most {limit} bytes of inline content; got more.")
        return data


def _unpacked(data: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise DecodeError(f"Expected inline content packed with gzip; {error}.") from error
    if not unpacker.eof and len(found) <= limit:
        raise DecodeError("Expected inline content packed with gzip; it ends too early.")
    return found


class Link(_MessagePart):
    """Where the data, or something about them, can be fetched."""

    href: str = Field(min_length=1, max_length=4096)
    rel: str
    type: str | None = None
    length: int | None = Field(default=None, ge=0)


def _as_text(value: object) -> object:
    """Refuse numbers, which would be taken for seconds since 1970."""
    if isinstance(value, int | float):
        raise ValueError("expected a date and time as text, such as 2026-03-01T06:00:00Z")
    return value


_Time = Annotated[AwareDatetime, BeforeValidator(_as_text)]


class Properties(_MessagePart):
    """Properties of a notification: which data were published, when, and their checksum."""

    pubtime: _Time
    data_id: str = Field(min_length=1, max_length=1024)
    metadata_id: str | None = None
    datetime: _Time | None = None
    start_datetime: _Time | None = None
    end_datetime: _Time | None = None
    integrity: Integrity | None = None
    content: InlineContent | None = None


class Notification(_MessagePart):
    """A notification message of WIS2 (WNM), checked."""

    id: UUID
    type: Literal["Feature"]
    conforms_to: list[str] = Field(alias="conformsTo")
    geometry: dict[str, Any] | None
    properties: Properties
    links: list[Link] = Field(min_length=1, max_length=50)

    @model_validator(mode="before")
    @classmethod
    def _version(cls, value: Any) -> Any:
        """Accept `version`, which messages of the pilot phase have, in place of `conformsTo`."""
        if isinstance(value, dict) and "conformsTo" not in value and value.get("version") == "v04":
            return value | {"conformsTo": [CORE]}
        return value

    @model_validator(mode="after")
    def _conforms(self) -> Self:
        if CORE not in self.conforms_to:
            raise ValueError(f"expected conformsTo to hold {CORE}")
        if not self.deletes and not self.data_links:
            raise ValueError("expected a link with rel canonical, update or deletion")
        return self

    @property
    def deletes(self) -> bool:
        """Return whether the message withdraws data instead of announcing them."""
        return any(link.rel == "deletion" for link in self.links)

    @property
    def updates(self) -> bool:
        """Return whether the data replace earlier ones with the same `data_id`."""
        return any(link.rel == "update" for link in self.links)

    @property
    def data_links(self) -> list[Link]:
        """Return the links to the data over HTTP, the best first."""
        found = [link for link in self.links if link.rel in _DATA and _is_http(link.href)]
        return sorted(found, key=lambda link: _DATA.index(link.rel))

    @property
    def file_name(self) -> str:
        """Return a file name: the last part of the link, or of the identifier of the data.

        The one with an abbreviated heading is preferred, because that marks corrections: caches may
        name files differently from their identifiers.
        """
        link = self.data_links[0].href if self.data_links else ""
        named = posixpath.basename(unquote(urlsplit(link).path))
        identified = posixpath.basename(self.properties.data_id)
        told, known = NamedHeading.of(named), NamedHeading.of(identified)
        more = known.bulletin == told.bulletin and known.indicator and not told.indicator
        return identified if more or (known.bulletin and not told.bulletin) else named or identified

    def to_json(self) -> str:
        """Return the message as it is published, times in UTC to the second."""
        document = self.model_dump(mode="python", by_alias=True, exclude_none=True)
        document["geometry"] = self.geometry
        if self.properties.start_datetime is None:
            document["properties"].setdefault("datetime", None)
        return json.dumps(document, default=_plain, separators=(",", ":"))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return str(value)


def _is_http(href: str) -> bool:
    try:
        parts = urlsplit(href)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # malformed brackets or port
        return False


def parse(payload: bytes) -> Notification:
    """Return the notification in the payload of an MQTT message.

    Raises:
        InvalidInput: If it is none; the message says which member is wrong.
    """
    if len(payload) > MESSAGE_BYTES:
        raise InvalidInput(f"Expected a notification of at most {MESSAGE_BYTES} bytes.")
    try:
        return Notification.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "message"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidInput(
            f"Expected a WIS2 notification message; {place}: {message}.", field=place
        ) from error
    except RecursionError as error:  # pragma: no cover - depends on the parser
        raise InvalidInput("Expected a WIS2 notification message; it is too deep.") from error
