"""A real S3 server on this machine, moto's, that can be told to fail, to stall and to be gone.

It can also repeat old answers to lists, as servers do whose lists lag behind their objects.
"""

import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

RESULTS, UPLOADS, OBSERVATIONS = "appa/results/", "appa/uploads/", "appa/observations/"
ANSWER = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"
Meddle = Callable[[str, str], int | None]
"""Given method and path of a request, the status to answer instead of doing it; it may wait."""


def _bind(port: int) -> socket.socket:
    """Bind a socket that shares its port with others of ours."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


class S3Server:
    """Holds one new bucket; requests are done one at a time, for moto checks and writes in two steps."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()
        self._server: BaseWSGIServer | None = None
        # Bound for as long as this object lives and never listening: while the server is stopped,
        # callers are refused and no other process can take the port.
        self._place = _bind(0)
        self.port = self._place.getsockname()[1]
        self.bucket = f"bucket-{secrets.token_hex(4)}"
        self.meddle: Meddle = lambda method, path: None
        self.lose: Meddle = lambda method, path: None  # after the request was done
        self.requests: list[tuple[str, str, int]] = []
        self.lists_are_stale = False
        self._lists: dict[str, tuple[str, list, list[bytes]]] = {}
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.start()
        self.client().create_bucket(Bucket=self.bucket)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{RESULTS}"

    @property
    def uploads_url(self) -> str:
        return f"s3://{self.bucket}/{UPLOADS}"

    @property
    def observations_url(self) -> str:
        return f"s3://{self.bucket}/{OBSERVATIONS.rstrip('/')}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it, but for the address of the results."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """Another client than ours."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def names(self, prefix: str = "", below: str = RESULTS) -> list[str]:
        """The objects in the bucket below the prefix of the results, or another."""
        found = self.client().list_objects_v2(Bucket=self.bucket, Prefix=f"{below}{prefix}")
        return sorted(one["Key"].removeprefix(below) for one in found.get("Contents", []))

    def get(self, name: str, below: str = RESULTS) -> bytes:
        content = self.client().get_object(Bucket=self.bucket, Key=f"{below}{name}")["Body"].read()
        assert isinstance(content, bytes)
        return content

    def start(self) -> None:
        listener = _bind(self.port)
        listener.listen(128)
        # The server keeps a duplicate of the descriptor, so this one is closed here.
        self._server = make_server(
            "127.0.0.1", self.port, self._answer, threaded=True, fd=listener.fileno()
        )
        listener.close()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more; what is stored stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """Be gone for good."""
        self.stop()
        self._place.close()

    def _answer(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        status = self.meddle(method, path)
        if status is not None:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            self.requests.append((method, path, status))
            start_response(f"{status} Meddled", [("Content-Length", str(len(ANSWER)))])
            return [ANSWER]

        def record(line: str, headers: list, *rest: object) -> object:
            self.requests.append((method, path, int(line.split()[0])))
            return start_response(line, headers, *rest)

        asked = f"{path}?{environ['QUERY_STRING']}"
        if "list-type=2" not in asked:
            with self._turn:
                if self.lose(method, path):
                    list(self._app(environ, lambda *head: record("500 Lost", [])))
                    return [ANSWER]
                return list(self._app(environ, record))
        if not (self.lists_are_stale and asked in self._lists):
            seen: list = []
            with self._turn:
                body = list(self._app(environ, lambda *head: seen.extend(head)))
            self._lists[asked] = (seen[0], seen[1], body)
        line, headers, body = self._lists[asked]
        record(line, headers)
        return body
