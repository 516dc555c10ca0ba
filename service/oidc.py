"""Check bearer tokens of an OpenID Connect issuer, which may be sent where an API key may be.

A token is a JSON Web Token in its compact form (RFC 7519), signed by the issuer. Its header names the
key by `kid`; the issuer's keys are found by OpenID Connect Discovery 1.0 and kept as a JSON Web Key
Set (RFC 7517). We choose the key ourselves, and the algorithm by a list of our own: neither the token
nor the key set may choose a weaker one (RFC 8725, sections 3.1 and 3.2). Who sent it becomes an
`ApiKey` of the same shape as any other, so that scopes, owners, rates and quotas know no difference.

Keys are fetched when the first token comes, again when they are old, and at once for a `kid` that is
not among them, but not more often than the settings allow: senders of invalid tokens cannot make us
flood the issuer. While the issuer cannot be reached, known keys stay in use for a day.
"""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from anyio import to_thread
from joserfc import jwk, jws, jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError, UnsupportedAlgorithmError

from model.domain.errors import ConfigurationError
from service.errors import Unauthenticated, Unavailable
from service.keys import ApiKey, Scope
from service.settings import GatewaySettings, is_fetchable

__all__ = ["ALGORITHMS", "TokenIssuer"]

log = structlog.get_logger()

ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    "RS256": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),  # the same by its name of RFC 9864
}
"""Algorithms that are accepted, with the type and curve that their keys have."""

_MIN_RSA_BITS = 2048
_MAX_BYTES = 2**20
"""Maximum size of a document of the issuer."""
_MAX_AGE = 86_400.0
"""Seconds for which keys stay in use while they cannot be fetched again."""

JsonWebKey = dict[str, Any]


class _Registry(jws.JWSRegistry):
    """The algorithms of `ALGORITHMS` alone; headers may hold what we do not know."""

    max_header_length = 4096  # some issuers send certificates

    def get_alg(self, name: str) -> Any:
        """Return a signature algorithm by its name, if it is one that is accepted here."""
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError(f"Algorithm of '{name}' is not allowed")
        return self.algorithms[name]


_REGISTRY = _Registry(strict_check_header=False)


class IssuerFailed(Exception):
    """The issuer does not respond, or not as the standard requires."""


class TokenIssuer:
    """The issuer whose tokens are accepted, with its keys as they were fetched last.

    Arguments:
        settings: With an issuer.

    Raises:
        ConfigurationError: If the settings map a value of the claim to an unknown scope.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self._granted = _granted(settings.oidc_scopes)
        self._claims = jwt.JWTClaimsRegistry(
            leeway=settings.oidc_skew_seconds,
            iss={"essential": True, "value": settings.oidc_issuer},
            aud={"essential": True, "value": settings.oidc_audience},
            sub={"essential": True},
            exp={"essential": True},
        )
        self._keys: dict[str, list[JsonWebKey]] = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._failure = ""
        self._fetching = asyncio.Lock()

    @staticmethod
    def takes(presented: str) -> bool:
        """Return whether this is a signed token rather than a key: three parts between dots."""
        return presented.count(".") == 2 and not presented.startswith("appa_")

    async def check(self, token: str) -> ApiKey:
        """Return who sent a token, as a key with the scopes that its claim gives.

        Raises:
            Unauthenticated: If it is not a valid token of this issuer for this audience.
            Unavailable: If the issuer's keys cannot be fetched.
        """
        try:
            header = jws.extract_compact(token.encode(), registry=_REGISTRY).headers()
        except (JoseError, ValueError, RecursionError) as error:
            raise _refused("it cannot be read") from error
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise _refused(f"its algorithm is none of {', '.join(ALGORITHMS)}")
        if not isinstance(kid, str) or "crit" in header:
            raise _refused("its header names no key (`kid`), or has `crit`")
        key = await self._key(kid, algorithm)
        try:
            # joserfc compares names, of which Ed25519 has two: `_fits` has compared what they mean.
            unnamed = {name: value for name, value in key.items() if name != "alg"}
            claims = jwt.decode(token, jwk.import_key(unnamed), registry=_REGISTRY).claims
            self._claims.validate(claims)
            return self._caller(claims)
        except ExpiredTokenError as error:
            raise _refused("it has expired") from error
        except ClaimError as error:
            raise _refused(f"its claim does not fit: {error.description}") from error
        except (JoseError, ValueError, OverflowError, RecursionError) as error:
            raise _refused("its signature or content is not valid") from error

    def _caller(self, claims: Mapping[str, Any]) -> ApiKey:
        subject = str(claims["sub"])
        who = json.dumps([self.settings.oidc_issuer, subject]).encode()
        return ApiKey(
            # Without ':', which marks owners that are the installation itself.
            id=f"oidc-{hashlib.sha256(who).hexdigest()[:32]}",
            name=subject[:200],
            sha256="",
            scopes=frozenset(
                scope
                for value in _values(claims, self.settings.oidc_scope_claim)
                for scope in self._granted.get(value, ())
            ),
            created=datetime.fromtimestamp(claims.get("iat", 0), UTC),
            expires=datetime.fromtimestamp(claims["exp"], UTC),
        )

    async def _key(self, kid: str, algorithm: str) -> JsonWebKey:
        """Return the key of this id, fetched if need be.

        Raises:
            Unauthenticated: If the issuer has none of this id that fits the algorithm.
            Unavailable: If the keys cannot be fetched.
        """
        if self._age() >= self.settings.oidc_refresh_seconds and not (
            self._fetching.locked() and kid in self._keys  # another request is fetching them
        ):
            await self._refresh()
        if kid not in self._keys or self._age() >= _MAX_AGE:
            await self._refresh()
            self._require_fetched(kid)
        for key in self._keys[kid]:
            if _fits(key, algorithm):
                return key
        raise _refused(f"the issuer's key '{kid[:80]}' is not one for {algorithm}")

    def _require_fetched(self, kid: str) -> None:
        pause = self.settings.oidc_refetch_seconds
        if self._failure and (kid not in self._keys or self._age() >= _MAX_AGE):
            wait = max(1, round(pause - (time.monotonic() - (self._tried or 0.0))))
            raise Unavailable(
                f"Expected the issuer of tokens to answer: {self._failure} API keys go on "
                "working; try again later.",
                code="issuer_unavailable",
                retry_after=wait,
            )
        if kid not in self._keys:
            raise _refused(f"the issuer has no key '{kid[:80]}' (asked at most every {pause:g} s)")

    def _age(self) -> float:
        return float("inf") if self._fetched is None else time.monotonic() - self._fetched

    async def _refresh(self) -> None:
        """Fetch the keys unless a fetch was tried a moment ago; concurrent callers wait for it."""
        async with self._fetching:
            now = time.monotonic()
            if self._tried is not None and now - self._tried < self.settings.oidc_refetch_seconds:
                return
            self._failure = "asking it was cut short."
            try:
                self._keys = await to_thread.run_sync(_fetch_keys, self.settings)
                self._fetched, self._failure = time.monotonic(), ""
            except IssuerFailed as error:
                self._failure = str(error)
                log.warning("oidc_keys_not_fetched", reason=self._failure)
            finally:
                self._tried = time.monotonic()


def _granted(table: Mapping[str, list[str]]) -> dict[str, frozenset[Scope]]:
    known = set(Scope)
    if unknown := sorted({name for names in table.values() for name in names} - known):
        raise ConfigurationError(
            f"Expected scopes of {', '.join(Scope)} in APPA_OIDC_SCOPES; got {', '.join(unknown)}."
        )
    return {value: frozenset(Scope(name) for name in names) for value, names in table.items()}


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(
        f"Expected a valid token of the issuer of this gateway; {why}. Get a new one from it, or "
        "send an API key.",
        error="invalid_token",
    )


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """Return the values of a claim: a list, or a text of words; dots in the name descend into objects."""
    found: Any = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, str):
        return found.split()
    return [value for value in found if isinstance(value, str)] if isinstance(found, list) else []


def _fits(key: JsonWebKey, algorithm: str) -> bool:
    """Return whether a key may check signatures of an algorithm."""
    kind, curve = ALGORITHMS[algorithm]
    named = key.get("alg", algorithm)
    operations = key.get("key_ops", ["verify"])
    return (
        key["kty"] == kind
        and (curve is None or key.get("crv") == curve)
        and key.get("use", "sig") == "sig"
        and isinstance(named, str)
        and ALGORITHMS.get(named) == ALGORITHMS[algorithm]
        and isinstance(operations, list)
        and "verify" in operations
    )


def _fetch_keys(settings: GatewaySettings) -> dict[str, list[JsonWebKey]]:
    """Return the issuer's public keys by id.

    Raises:
        IssuerFailed: If it does not answer in time, or with something else.
    """
    issuer = settings.oidc_issuer
    deadline = time.monotonic() + settings.oidc_timeout_seconds
    try:
        with httpx.Client() as client:
            about = _document(client, issuer.rstrip("/") + DISCOVERY, deadline)
            if about.get("issuer") != issuer:  # RFC 8414, section 3.3
                raise IssuerFailed(f"'{issuer}' calls itself {str(about.get('issuer'))[:200]!r}.")
            place = about.get("jwks_uri")
            if not isinstance(place, str) or not is_fetchable(place):
                raise IssuerFailed(f"'{issuer}' names no address of its keys that begins https://.")
            found = _document(client, place, deadline).get("keys")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise IssuerFailed(f"'{issuer}' did not answer ({type(error).__name__}).") from error
    keys: dict[str, list[JsonWebKey]] = {}
    for key in found if isinstance(found, list) else []:
        if _is_public(key):
            keys.setdefault(key["kid"], []).append(key)
    if not keys:
        raise IssuerFailed(f"'{issuer}' has no key of a known kind.")
    return keys


DISCOVERY = "/.well-known/openid-configuration"


def _document(client: httpx.Client, url: str, deadline: float) -> dict[str, Any]:
    content, left = b"", max(0.01, deadline - time.monotonic())
    headers = {"Accept": "application/json"}
    with client.stream("GET", url, headers=headers, timeout=left) as answer:
        if answer.status_code != 200:
            raise IssuerFailed(f"'{url}' answered with {answer.status_code}.")
        for block in answer.iter_bytes():
            content += block
            if len(content) > _MAX_BYTES or time.monotonic() > deadline:
                raise IssuerFailed(f"'{url}' sent too much, or too slowly.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise IssuerFailed(f"'{url}' sent no JSON.") from error
    if not isinstance(document, dict):
        raise IssuerFailed(f"'{url}' sent no JSON object.")
    return document


def _is_public(key: Any) -> bool:
    """Return whether this is a public key with an id that can be loaded and is strong enough."""
    if not isinstance(key, dict) or not isinstance(key.get("kid"), str):
        return False
    if not any(key.get("kty") == kind for kind, _ in ALGORITHMS.values()):
        return False  # shared secrets among them
    try:
        if key["kty"] == "RSA" and _bits(key["n"]) < _MIN_RSA_BITS:
            return False
        jwk.import_key(key)
    except Exception:  # one key that cannot be loaded does not discard the others
        return False
    return True


def _bits(number: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(number + "==")).bit_length()
