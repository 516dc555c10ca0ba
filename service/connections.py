"""Limit connections: size and duration of request heads, slow readers, connections per address.

uvicorn reads heads of any size for any time, and waits for ever for bodies and slow readers. The
protocol here refuses what passes the limits before the application sees it; `BodyLimit` bounds
bodies within the application, where the answer can say why. Uploads have limits of their own
(`service.uploads`).
"""

import asyncio
import ipaddress
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import structlog
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from model.domain.files import RepeatedName, distinct_names
from service.errors import PROBLEM_JSON, PROBLEMS
from service.problems import problem_response
from service.query_parameters import is_unicode
from service.settings import GatewaySettings

__all__ = ["BodyLimit", "ConnectionLimits", "limited_protocol"]

log = structlog.get_logger()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SMALL_BODY = 32 * 1024
_REASONS = {
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


@dataclass
class ConnectionLimits:
    """Limits of the connections of one process, and the number open for each address.

    Attributes:
        head_bytes: Most bytes of a request line and headers, or of trailers.
        head_seconds: Time to receive the whole head, or the rest of a body after its answer.
        stalled_seconds: Time after which a client that reads nothing of its answer is dropped.
        per_address: Connections of one address; 0 for no limit.
        trusted: Addresses of proxies, which are not limited.
        open: Connections by address.
    """

    head_bytes: int
    head_seconds: float
    stalled_seconds: float
    per_address: int
    trusted: frozenset[str] = frozenset()
    open: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, settings: GatewaySettings) -> "ConnectionLimits":
        """Return the limits that `settings` ask for."""
        return cls(
            head_bytes=settings.max_header_bytes,
            head_seconds=settings.header_seconds,
            stalled_seconds=settings.reader_idle_seconds,
            per_address=settings.connections_per_address,
            trusted=frozenset(map(_sender, settings.proxies)),
        )


class LimitedProtocol(HttpToolsProtocol):
    """HTTP protocol of uvicorn that refuses connections and requests beyond `limits`."""

    limits: ConnectionLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since_event = 0
        self._head_size = 0
        self._in_head = True
        self._in_message = False
        self._unreadable = False
        self._refusal: tuple[str, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._address = _sender(self.client[0] if self.client else "")
        self.limits.open[self._address] += 1
        if self._too_many():
            self._refuse(
                "too_many_connections",
                f"Expected at most {self.limits.per_address} connections from {self._address}; "
                "close some of them.",
            )
            return
        self._arm()

    def _too_many(self) -> bool:
        limits = self.limits
        counted = self._address and self._address not in limits.trusted
        return bool(counted and 0 < limits.per_address < limits.open[self._address])

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.open[self._address] -= 1
        if self.limits.open[self._address] <= 0:
            del self.limits.open[self._address]
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    # -- the head, and what is sent without being part of a body

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._since_event += len(data)
        if self._unreadable:  # what follows is not read; the requests before it have their answers
            if self._since_event > self.limits.head_bytes:
                self.transport.close()
            return
        super().data_received(data)
        if self._since_event > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse("header_too_large", self._too_large())
        elif self._in_head and self._timer is None and (self._in_message or self._answered()):
            self._arm()

    def _too_large(self) -> str:
        return f"Expected a request line and headers of at most {self.limits.head_bytes} bytes."

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._head_size = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_size += len(name) + len(value)

    def on_headers_complete(self) -> None:
        self._since_event = 0
        self._disarm()
        if self._head_size > self.limits.head_bytes:
            self._refusal = ("header_too_large", self._too_large())
            raise ValueError(self._too_large())  # ends in send_400_response
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._since_event = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._since_event, self._in_message, self._in_head = 0, False, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message and self._timer is None and not self.transport.is_closing():
            self._arm()  # bound the time for the rest of a body that no route reads

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.limits.head_seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if not self._answered():
            self._arm()  # the head of the next request, while this one is answered
        elif self._in_head and self._in_message:
            seconds = self.limits.head_seconds
            self._refuse(
                "request_timeout",
                f"Expected a whole request line and headers within {seconds:g} s.",
            )
        else:
            self.transport.close()

    def _answered(self) -> bool:
        """Return whether no request of this connection waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    # -- clients that do not take their answer

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.stalled_seconds, self._stalled)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _stalled(self) -> None:
        log.info("slow_reader_dropped", client=self._address)
        self.transport.abort()

    # -- refusals

    def _unsupported_upgrade_warning(self) -> None:
        """Answer as if no upgrade was asked for; the parser reads nothing after it."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        if self._in_body():  # of a body, only the frame of its chunks can be malformed
            msg = (
                "Expected a body in chunks, each with its size in hexadecimal; got a malformed one."
            )
        code, detail = self._refusal or ("bad_request", f"{msg} Send HTTP/1.1.")
        self._refuse(code, detail)

    def _in_body(self) -> bool:
        """Return whether the parser is between the head of a request and the end of its body."""
        return self._in_message and not self._in_head

    def _refuse(self, code: str, detail: str) -> None:
        """Send a problem document and close; whole requests before the refused one are answered first.

        Nothing is sent where a part of the answer to the refused request has been.
        """
        self._disarm()
        log.info("connection_refused", client=self._address, code=code)
        cycle = self.cycle
        if cycle is not None and self._in_body():
            if not (cycle.response_started or self.pipeline):
                self.transport.write(_refusal(code, detail))
                cycle.disconnected = True  # the route hears so, and what it answers is dropped
                cycle.message_event.set()
            self.transport.close()
        elif cycle is not None and not cycle.response_complete:
            self._unreadable, cycle.keep_alive = True, False
        else:
            self.transport.write(_refusal(code, detail))
            self.transport.close()


def _sender(address: str) -> str:
    """Return what is counted: an IPv4 address, or the /64 network that one IPv6 host may have."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return address if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def _refusal(code: str, detail: str) -> bytes:
    kind = PROBLEMS[code]
    document = {
        "type": f"/problems/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "code": code,
    }
    body = json.dumps(document).encode()
    retry = b"Retry-After: 5\r\n" if kind.status == 503 else b""
    return b"".join(
        [
            b"HTTP/1.1 %d %s\r\n" % (kind.status, _REASONS.get(kind.status, b"Bad Request")),
            b"Content-Type: %s\r\nContent-Length: %d\r\n" % (PROBLEM_JSON.encode(), len(body)),
            retry,
            b"Connection: close\r\n\r\n",
            body,
        ]
    )


def limited_protocol(bounds: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return the protocol class with these limits, as uvicorn's option `http` takes it."""
    attributes: dict[str, Any] = {"limits": bounds}
    return type("BoundProtocol", (LimitedProtocol,), attributes)


def _check_json(body: bytes) -> None:
    """Refuse JSON that repeats a name in an object, or has half of a surrogate pair: all values of the
    name but one would be lost, and such text cannot be stored or sent back.
    """
    try:
        value = json.loads(body, object_pairs_hook=distinct_names)
        text = json.dumps(value, ensure_ascii=False) if _SURROGATE.search(body) else ""
    except RepeatedName as error:
        raise HTTPException(422, f"Expected each name once; {error} of the body.") from None
    except (ValueError, RecursionError):
        return  # not JSON: the route that parses it reports that
    if not is_unicode(text):
        raise HTTPException(422, "Expected Unicode text; got half of a surrogate pair in the body.")


class BodyLimit:
    """Refuses bodies above a limit, by Content-Length before reading and by count while reading.

    Uploads are left out: they have a limit of their own and never are in memory.

    Arguments:
        app: What is protected.
        limit: Bytes.
        seconds: The whole body must have arrived within this time.
        except_path: Path of the uploads.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float, except_path: str) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds
        self.except_path = except_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].rstrip("/").endswith(self.except_path):
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.limit:
            detail = f"Expected a body of at most {self.limit} bytes; got {length}."
            headers = {"Connection": "close"}
            response = problem_response(Request(scope), "too_large", detail, headers=headers)
            await response(scope, receive, send)
            return
        await self.app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        body, more = bytearray(), True
        deadline = asyncio.get_running_loop().time() + self.seconds
        close = {"Connection": "close"}

        async def receive_bounded() -> Message:
            nonlocal more
            if not more:  # waits for the client to go away
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"Expected the whole body within {self.seconds:g} s; it did not come."
                raise HTTPException(408, detail, headers=close) from None
            more = message["type"] == "http.request" and message.get("more_body", False)
            body.extend(message.get("body", b""))
            if len(body) > self.limit:
                detail = f"Expected a body of at most {self.limit} bytes."
                raise HTTPException(413, detail, headers=close)
            if not more:
                if len(body) < _SMALL_BODY:
                    _check_json(bytes(body))
                else:  # a megabyte of objects takes tenths of a second
                    await to_thread.run_sync(_check_json, bytes(body))
            return message

        return receive_bounded
