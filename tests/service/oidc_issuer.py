"""An OpenID Connect issuer on this machine: keys made here, served over HTTP, tokens signed by hand.

Keys and tokens are written from RFC 7515, 7518 and 8037 with `cryptography` alone, so that the library
that checks them in the service is no judge of itself.
"""

import hmac
import json
import threading
import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

AUDIENCE = "https://appa.example/"


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass
class SigningKey:
    """A private key of one of the three kinds, with the id under which it is published."""

    kid: str
    algorithm: str
    private: Any

    @classmethod
    def make(cls, kid: str, algorithm: str = "ES256", bits: int = 2048) -> "SigningKey":
        if algorithm == "RS256":
            return cls(kid, algorithm, rsa.generate_private_key(65537, bits))
        if algorithm == "ES256":
            return cls(kid, algorithm, ec.generate_private_key(ec.SECP256R1()))
        return cls(kid, algorithm, ed25519.Ed25519PrivateKey.generate())

    def published(self) -> dict[str, str]:
        public, more = self.private.public_key(), {"kid": self.kid, "use": "sig"}
        if self.algorithm == "RS256":
            n = public.public_numbers()
            return {"kty": "RSA", "n": number(n.n), "e": number(n.e), **more}
        if self.algorithm == "ES256":
            n = public.public_numbers()
            return {"kty": "EC", "crv": "P-256", "x": number(n.x, 32), "y": number(n.y, 32), **more}
        return {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw()), **more}

    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, text: bytes) -> bytes:
        if self.algorithm == "RS256":
            return self.private.sign(text, padding.PKCS1v15(), hashes.SHA256())
        if self.algorithm == "ES256":
            r, s = decode_dss_signature(self.private.sign(text, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return self.private.sign(text)


def compact(header: dict[str, Any], claims: Any, sign) -> str:
    text = ".".join(b64(json.dumps(part).encode()) for part in (header, claims))
    return f"{text}.{b64(sign(text.encode()))}"


def hs256(secret: bytes):
    return lambda text: hmac.digest(secret, text, sha256)


@dataclass
class Issuer:
    """The server; what it serves may be changed while it runs."""

    keys: list[SigningKey] = field(default_factory=list)
    more_keys: list[Any] = field(default_factory=list)
    calls_itself: str = ""
    down: bool = False
    drips: bool = False
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> "Issuer":
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = json.dumps(issuer.document(self.path)).encode()
                self.send_response(503 if issuer.down else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if not issuer.drips:
                    self.wfile.write(body)
                    return
                with suppress(OSError):  # whoever asked has left
                    for start in range(len(body)):
                        self.wfile.write(body[start : start + 1])
                        time.sleep(0.05)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def document(self, path: str) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.calls_itself or self.url, "jwks_uri": f"{self.url}/keys"}
        return {"keys": [*self.more_keys, *(key.published() for key in self.keys)]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a valid token; those changed to None are left out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "iat": now,
            "exp": now + 300,
            "scope": "openid forecaster",
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, key: SigningKey | None = None, **changes: Any) -> str:
        key = key or self.keys[0]
        header = {"alg": key.algorithm, "kid": key.kid, "typ": "at+jwt"}
        return compact(header, self.claims(**changes), key.sign)
