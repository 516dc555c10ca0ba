"""Tokens of an OpenID Connect issuer besides API keys: real gateway, real issuer over HTTP."""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess
from oidc_issuer import AUDIENCE, Issuer, SigningKey, b64, compact, hs256

from model.domain.errors import ConfigurationError
from service.app import create_app
from service.errors import Unauthenticated, Unavailable
from service.keys import KeyFile, Scope
from service.oidc import TokenIssuer
from service.settings import GatewaySettings
from tests.service.openapi_document import openapi_document
from worker.contract.store import open_stores

SCOPES = {
    "forecaster": ["analyses:read", "jobs:write", "observations:write"],
    "audience": ["analyses:read"],
}
FILTERING = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}
SKEW = 30


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    keys = [SigningKey.make(f"key-{name}", name) for name in ("ES256", "RS256", "EdDSA")]
    with Issuer(keys) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(valkey_url_shared: str, issuer: Issuer) -> Iterator[GatewayProcess]:
    with tempfile.TemporaryDirectory(prefix="appa-oidc-") as folder:
        environment = {
            "APPA_REQUIRE_KEYS": "true",
            "APPA_OIDC_ISSUER": issuer.url,
            "APPA_OIDC_AUDIENCE": AUDIENCE,
            "APPA_OIDC_SCOPES": json.dumps(SCOPES),
            "APPA_OIDC_SKEW_SECONDS": str(SKEW),
            "APPA_OIDC_REFETCH_SECONDS": "0.5",
            "APPA_JOBS_PER_DAY_PER_KEY": "2",
        }
        process = GatewayProcess(valkey_url_shared, Path(folder), environment=environment).start()
        yield process
        process.stop()


def ask(gateway: GatewayProcess, token: str, path: str = "/v1/keys/me") -> httpx.Response:
    return httpx.get(gateway.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def refused(answer: httpx.Response) -> str:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (401, "unauthenticated"), answer.text
    assert 'Bearer realm="appa", error="invalid_token"' in answer.headers["www-authenticate"]
    return problem["detail"]


@pytest.mark.parametrize("number", range(3), ids=["ES256", "RS256", "EdDSA"])
def test_a_valid_token_of_each_algorithm(guarded, issuer, number) -> None:
    answer = ask(guarded, issuer.token(issuer.keys[number], aud=["other", AUDIENCE]))
    assert answer.status_code == 200, answer.text
    assert answer.json()["scopes"] == sorted(SCOPES["forecaster"])
    assert answer.json()["name"] == "alice"


def test_a_token_stands_where_a_key_may(guarded, issuer) -> None:
    url, token = f"{guarded.url}/v1/keys/me", issuer.token()
    answers = [
        httpx.get(url, headers={"X-API-Key": token}),
        httpx.get(url, auth=("anyone", token)),
    ]
    assert [answer.json()["name"] for answer in answers] == ["alice", "alice"]
    wrong = httpx.get(f"{guarded.url}/v1/data/an-0/zarr", auth=("anyone", issuer.token(aud="b")))
    assert 'error="invalid_token", Basic' in wrong.headers["www-authenticate"]
    refused(wrong)


def test_times_with_the_skew_of_clocks(guarded, issuer) -> None:
    now = int(time.time())
    for near in ({"exp": now - SKEW + 10}, {"nbf": now + SKEW - 10}, {"iat": now + SKEW - 10}):
        assert ask(guarded, issuer.token(**near)).status_code == 200, near
    assert "expired" in refused(ask(guarded, issuer.token(exp=now - SKEW - 1)))
    for far in ({"nbf": now + SKEW + 10}, {"iat": now + SKEW + 10}):
        refused(ask(guarded, issuer.token(**far)))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://appa.example"},  # without the final slash: another
        {"aud": ["a", "b"]},
        {"aud": None},
        {"aud": [AUDIENCE, 7]},
        {"iss": "https://issuer.example"},
        {"iss": None},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": 10**40},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
    ],
    ids=str,
)
def test_claims_that_do_not_fit(guarded, issuer, changes) -> None:
    refused(ask(guarded, issuer.token(**changes)))


def test_issuer_is_compared_to_the_letter(guarded, issuer) -> None:
    refused(ask(guarded, issuer.token(iss=issuer.url + "/")))


def test_algorithms_that_anybody_can_sign_with(guarded, issuer) -> None:
    claims, (elliptic, modular, _) = issuer.claims(), issuer.keys
    for name in ("none", "None", "NONE"):
        detail = refused(
            ask(guarded, compact({"alg": name, "kid": elliptic.kid}, claims, lambda _: b""))
        )
        assert "algorithm" in detail
    for key in (elliptic, modular):  # the public key as a secret that both sides know
        header = {"alg": "HS256", "kid": key.kid}
        for secret in (key.pem(), json.dumps(key.published()).encode()):
            assert "algorithm" in refused(ask(guarded, compact(header, claims, hs256(secret))))


def test_signatures_and_headers_that_are_not_the_issuers(guarded, issuer) -> None:
    own, claims = issuer.keys[0], issuer.claims()
    stranger = SigningKey.make(own.kid)
    refused(ask(guarded, issuer.token(stranger)))
    brought = {"alg": "ES256", "kid": own.kid, "jwk": stranger.published()}
    refused(ask(guarded, compact(brought, claims, stranger.sign)))
    head, _, signature = issuer.token().split(".")
    more = b64(json.dumps(issuer.claims(scope="audience forecaster")).encode())
    refused(ask(guarded, f"{head}.{more}.{signature}"))
    refused(ask(guarded, f"{head}.{more}."))
    for header in ({"alg": "RS256"}, {"crit": ["exp"], "exp": 1}, {"kid": None}, {"kid": ["a"]}):
        changed = {"alg": "ES256", "kid": own.kid, **header}
        refused(ask(guarded, compact(changed, claims, own.sign)))
    for nonsense in ("a.b.c", "..", f"{b64(b'[' * 3000)}.e30.AA", f"{b64(b'7')}.e30.AA"):
        refused(ask(guarded, nonsense))
    refused(ask(guarded, compact({"alg": "ES256", "kid": own.kid}, ["no", "claims"], own.sign)))


def test_scopes_come_from_the_claim_and_its_table_alone(guarded, issuer) -> None:
    for scope in ("openid admin", "", None, 7, {"forecaster": True}):
        token = issuer.token(scope=scope)
        assert ask(guarded, token).json()["scopes"] == []
        answer = ask(guarded, token, "/v1/analyses")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    reader = issuer.token(scope=["audience"])
    assert ask(guarded, reader, "/v1/analyses").status_code == 200
    headers = {"Authorization": f"Bearer {reader}"}
    assert httpx.post(guarded.url + "/v1/jobs", json=FILTERING, headers=headers).status_code == 403


def test_records_and_quotas_belong_to_who_sent_the_token(guarded, issuer) -> None:
    stores = open_stores(guarded.redis_url, guarded.prefix)
    acting_worker.report(stores)
    stores.redis.close()
    first = {"Authorization": f"Bearer {issuer.token(sub='bob')}"}
    again = {"Authorization": f"Bearer {issuer.token(issuer.keys[1], sub='bob')}"}
    other = {"Authorization": f"Bearer {issuer.token(sub='carol')}"}
    with httpx.Client(base_url=guarded.url, timeout=30) as http:
        jobs = [http.post("/v1/jobs", json=FILTERING, headers=h) for h in (first, again, again)]
        assert [job.status_code for job in jobs] == [202, 202, 429], jobs[-1].text
        assert jobs[2].json()["code"] == "quota_exceeded"
        owner = jobs[0].json()["api_key"]
        assert ":" not in owner and owner == http.get("/v1/keys/me", headers=again).json()["id"]
        path = jobs[0].headers["location"]
        assert http.get(path, headers=again).status_code == 200
        assert http.get(path, headers=other).status_code == 404
        assert http.delete(path, headers=other).status_code == 404
        listed = [len(http.get("/v1/jobs", headers=h).json()["items"]) for h in (again, other)]
        assert listed == [2, 0]
        assert http.delete(path, headers=again).is_success
        lines = (guarded.layout.audit_file).read_text().splitlines()
    assert {line["key"] for line in map(json.loads, lines)} >= {owner}


def test_keys_that_are_rotated_are_found_and_nonsense_asks_seldom(guarded, issuer) -> None:
    assert ask(guarded, issuer.token()).status_code == 200
    new, old = SigningKey.make("key-of-tomorrow"), issuer.keys[0]
    time.sleep(0.6)
    asked = len(issuer.asked)
    for _ in range(5):
        assert "no key" in refused(ask(guarded, issuer.token(new)))
    assert len(issuer.asked) - asked <= 4  # discovery and keys, once or (a slow machine) twice
    issuer.keys = [new, *issuer.keys[1:]]
    time.sleep(0.6)
    assert ask(guarded, issuer.token(new)).status_code == 200
    refused(ask(guarded, issuer.token(old)))  # no longer one of its keys


def test_without_the_issuer_known_keys_and_api_keys_go_on(guarded, issuer) -> None:
    assert ask(guarded, issuer.token()).status_code == 200
    key, _ = KeyFile(guarded.layout.keys_file).create("test", [Scope.ANALYSES_READ])
    new = SigningKey.make("key-nobody-can-fetch")
    issuer.down = True
    try:
        time.sleep(0.6)
        answer = ask(guarded, issuer.token(new))
        assert (answer.status_code, answer.json()["code"]) == (503, "issuer_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert ask(guarded, issuer.token()).status_code == 200
        assert ask(guarded, key, "/v1/analyses").status_code == 200
    finally:
        issuer.down = False


def settings(issuer: Issuer, **more) -> GatewaySettings:
    given = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE, "oidc_scopes": SCOPES}
    return GatewaySettings(**given | more)


async def test_an_issuer_that_is_down_at_first_is_asked_again(issuer) -> None:
    with Issuer([SigningKey.make("one", "EdDSA")], down=True) as late:
        tokens = TokenIssuer(settings(late, oidc_refetch_seconds=0.3))
        with pytest.raises(Unavailable) as error:
            await tokens.check(late.token())
        assert error.value.code == "issuer_unavailable"
        late.down = False
        with pytest.raises(Unavailable):  # not asked at once
            await tokens.check(late.token())
        await asyncio.sleep(0.35)
        callers = await asyncio.gather(*(tokens.check(late.token()) for _ in range(20)))
        assert len({caller.id for caller in callers}) == 1
        assert len(late.asked) == 3  # the failed one; discovery and keys, once for all twenty


async def test_old_keys_are_fetched_anew_and_serve_while_they_cannot_be() -> None:
    with Issuer([SigningKey.make("one", "EdDSA")]) as running:
        often = settings(running, oidc_refresh_seconds=0.05, oidc_refetch_seconds=0.05)
        tokens = TokenIssuer(often)
        await tokens.check(running.token())
        await asyncio.sleep(0.06)
        running.down = True
        asked = len(running.asked)
        await tokens.check(running.token())
        assert len(running.asked) > asked
        gone, running.keys, running.down = running.keys[0], [SigningKey.make("two")], False
        await asyncio.sleep(0.06)
        with pytest.raises(Unauthenticated, match="no key 'one'"):
            await tokens.check(running.token(gone))


async def test_keys_that_prove_nothing_are_not_taken() -> None:
    secret = b"a secret that is written in the key set"
    weak, good = SigningKey.make("weak", "RS256", 1024), SigningKey.make("good", "RS256")
    for_others = {**SigningKey.make("other").published(), "use": "enc"}
    shared = {"kty": "oct", "kid": "shared", "k": b64(secret)}
    odd = [
        {"kty": "RSA", "kid": "x"},
        {"kty": ["RSA"], "kid": "x"},
        {"kty": "EC", "crv": "P-256", "x": 7, "y": [], "kid": "x"},
        {"kty": "OKP", "crv": "X25519", "x": b64(bytes(32)), "kid": "x"},
        7,
    ]
    with Issuer([weak, good], more_keys=[for_others, shared, *odd]) as poor:
        tokens = TokenIssuer(settings(poor))
        assert (await tokens.check(poor.token(good))).scopes
        for token in (
            poor.token(weak),
            compact({"alg": "HS256", "kid": "shared"}, poor.claims(), hs256(secret)),
            poor.token(SigningKey("other", "ES256", SigningKey.make("other").private)),
            compact({"alg": "ES256", "kid": "good"}, poor.claims(), good.sign),
        ):
            with pytest.raises(Unauthenticated):
                await tokens.check(token)


@pytest.mark.parametrize("published", [{}, {"alg": "EdDSA"}, {"alg": "Ed25519"}], ids=str)
@pytest.mark.parametrize("signed", ["EdDSA", "Ed25519"])
async def test_both_names_of_ed25519_are_one_algorithm(signed, published) -> None:
    """RFC 9864 gives a new name to what RFC 8037 calls EdDSA; issuers rename keys and tokens in turn."""
    key = SigningKey.make("one", signed)
    with Issuer(more_keys=[key.published() | published]) as running:
        caller = await TokenIssuer(settings(running)).check(running.token(key))
        assert caller.name == "alice"


@pytest.mark.parametrize("named", ["ES256", "Ed448", "RS256", 7, ["EdDSA"]], ids=str)
async def test_keys_for_another_algorithm_are_not_taken(named) -> None:
    key = SigningKey.make("one", "EdDSA")
    with (
        Issuer([SigningKey.make("two")], [key.published() | {"alg": named}]) as running,
        pytest.raises(Unauthenticated),
    ):
        await TokenIssuer(settings(running)).check(running.token(key))


async def test_an_issuer_that_calls_itself_otherwise_is_none() -> None:
    with Issuer([SigningKey.make("one")], calls_itself="https://issuer.example") as other:
        tokens = TokenIssuer(settings(other))
        with pytest.raises(Unavailable, match="calls itself 'https://issuer.example'"):
            await tokens.check(other.token())


async def test_an_issuer_that_drips_or_floods_is_given_up() -> None:
    with Issuer([SigningKey.make("one")], drips=True) as slow:
        tokens, start = TokenIssuer(settings(slow, oidc_timeout_seconds=0.3)), time.monotonic()
        with pytest.raises(Unavailable, match="too slowly"):
            await tokens.check(slow.token())
        assert time.monotonic() - start < 2  # all of it would take 4 s
    with Issuer([SigningKey.make("one")], more_keys=["x" * 2**20]) as large:
        tokens = TokenIssuer(settings(large))
        with pytest.raises(Unavailable, match="too much"):
            await tokens.check(large.token())


async def test_roles_within_objects_and_claims_with_dots() -> None:
    with Issuer([SigningKey.make("one")]) as running:
        for name, claim in (
            ("realm.roles", {"realm": {"roles": ["audience", 7]}}),
            ("https://appa.example/roles", {"https://appa.example/roles": "audience x"}),
        ):
            tokens = TokenIssuer(settings(running, oidc_scope_claim=name))
            caller = await tokens.check(running.token(**claim))
            assert caller.scopes == {Scope.ANALYSES_READ}
            assert not (await tokens.check(running.token(realm="roles"))).scopes


def test_half_an_issuer_is_refused() -> None:
    whole = {"oidc_issuer": "https://id.example", "oidc_audience": "a", "oidc_scopes": SCOPES}
    GatewaySettings(**whole)
    for change in (
        {"oidc_audience": ""},
        {"oidc_scopes": {}},
        {"oidc_issuer": ""},
        {"oidc_issuer": "http://id.example"},
        {"oidc_issuer": "id.example"},
    ):
        with pytest.raises(ConfigurationError, match="APPA_OIDC_ISSUER"):
            GatewaySettings(**whole | change)
    with pytest.raises(ConfigurationError, match="everything"):
        TokenIssuer(GatewaySettings(**whole | {"oidc_scopes": {"boss": ["everything"]}}))


def test_the_description_names_the_issuer() -> None:
    whole = {"oidc_issuer": "https://id.example/", "oidc_audience": "a", "oidc_scopes": SCOPES}
    document = create_app(GatewaySettings(**whole)).openapi()
    scheme = document["components"]["securitySchemes"]["OpenIdConnect"]
    assert scheme["openIdConnectUrl"] == "https://id.example/.well-known/openid-configuration"
    assert {"OpenIdConnect": []} in document["paths"]["/v1/jobs"]["post"]["security"]
    assert "security" not in document["paths"]["/health/live"]["get"]
    assert "OpenIdConnect" not in openapi_document()["components"].get("securitySchemes", {})
