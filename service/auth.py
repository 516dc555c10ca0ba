"""Authenticate requests, and give routes the gateway and the caller's key by type.

A key comes as bearer token, as `X-API-Key`, or as the password of HTTP basic: netCDF-C
(`#mode=bytes`) and other clients know only user names and passwords
(`http://user:password@host`). The user name is ignored. Where an OpenID Connect issuer is configured,
its tokens are accepted in place of a key (`service.oidc`).
"""

import base64
import binascii
from typing import Annotated

import structlog
from anyio import to_thread
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers

from service.errors import Forbidden, QueueQuota, RateLimited, Unauthenticated
from service.gateway import Gateway
from service.keys import EVERYONES, LIMITS, OPEN, ApiKey, Scope
from worker.contract.batches import BatchRecord
from worker.contract.jobs import JobRecord
from worker.contract.usage import Charge, Use

READ_FACTOR = 20
"""Factor on the rate limit of requests that read a data set or file piece by piece: there are many
small ones, and they are counted separately."""

_IN_PIECES = ("/v1/fields", "/ogc")
"""Routes of maps, which request a field or a tile whenever the user pans or steps in time."""


def presented_key(headers: Headers) -> str | None:
    """Return the key in the headers of a request, if there is one."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic" and value:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return headers.get("x-api-key")


def needs_challenge(headers: Headers) -> bool:
    """Return whether a 401 carries a Basic challenge: clients other than browsers send a password only
    when challenged, while a browser would open a dialog.
    """
    return "mozilla" not in headers.get("user-agent", "").lower()


async def _check(gateway: Gateway, presented: str) -> ApiKey:
    if gateway.issuer is not None and gateway.issuer.takes(presented):
        return await gateway.issuer.check(presented)
    return gateway.keys.check(presented)


async def authenticate(
    gateway: Gateway, headers: Headers, *, pieces: bool = False, counted: bool = True
) -> ApiKey:
    """Return the key of a request, and count the request against its rate limit.

    Arguments:
        gateway: Keys, quotas and settings.
        headers: Headers of the request.
        pieces: Whether it reads a small piece of something larger; `READ_FACTOR` times as many of
            these are allowed.
        counted: Whether the request counts against the rate limit, which needs Redis.

    Raises:
        Unauthenticated: Without a key where one is needed, or with a wrong one.
        Unavailable: With a token, while the keys of its issuer cannot be fetched.
        RateLimited: Above the key's rate.
    """
    presented = presented_key(headers)
    basic = needs_challenge(headers)
    if presented is None:
        if not gateway.settings.keys_required:
            return OPEN
        raise Unauthenticated(
            "Expected an API key in 'Authorization: Bearer …' or 'X-API-Key'; got none. Ask the "
            "operator for one (`appa keys create NAME --scope SCOPE`).",
            basic=basic,
        )
    try:
        key = await _check(gateway, presented)
    except Unauthenticated as error:
        raise Unauthenticated(error.message, basic=basic, error=error.error) from error
    structlog.contextvars.bind_contextvars(api_key=key.id)
    if not gateway.settings.keys_required:  # where everybody sees everything without one
        key = key.model_copy(update={"scopes": key.scopes | EVERYONES})
    if not counted:
        return key
    limit = limits_of(gateway, key)["requests_per_minute"]
    name = f"{key.id}:pieces" if pieces else key.id
    limit *= READ_FACTOR if pieces else 1
    if limit:
        allowance = await to_thread.run_sync(gateway.stores.rates.take, name, limit)
        if not allowance.allowed:
            raise RateLimited(
                f"Expected at most {limit} requests a minute with key '{key.id}'; try again in "
                f"{allowance.retry_after} s.",
                allowance.retry_after,
            )
    return key


BEARER = HTTPBearer(auto_error=False, description="`Authorization: Bearer appa_…`, or a token.")
HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, alone.")


async def get_gateway(request: Request) -> Gateway:
    """Return the gateway of the application that serves this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(get_gateway)]


async def get_caller(
    request: Request,
    gateway: GatewayDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    header: Annotated[str | None, Security(HEADER)],
) -> ApiKey:
    """Return the key of this request, and count the request against its rate limit.

    Raises:
        Unauthenticated: Without a key where one is needed, or with a wrong one.
        RateLimited: Above the key's rate.
    """
    # Read by `authenticate`; declared as parameters for the OpenAPI document.
    del bearer, header
    path = request.url.path
    in_file = "range" in request.headers or path.endswith("/feedback")
    pieces = in_file and "/v1/analyses/" in path
    return await authenticate(
        gateway, request.headers, pieces=pieces or any(part in path for part in _IN_PIECES)
    )


AnyCaller = Annotated[ApiKey, Depends(get_caller)]


async def observation_writer(key: AnyCaller) -> ApiKey:
    """Return the key of a caller that may upload observations."""
    return key.require(Scope.OBSERVATIONS_WRITE)


async def observation_sender_or_reader(key: AnyCaller) -> ApiKey:
    """A caller that may see uploads."""
    return key.require(Scope.OBSERVATIONS_WRITE, Scope.ANALYSES_READ, *EVERYONES)


async def job_writer(key: AnyCaller) -> ApiKey:
    """A caller that may submit and cancel jobs."""
    return key.require(Scope.JOBS_WRITE)


async def job_reader(key: AnyCaller) -> ApiKey:
    """A caller that may see jobs."""
    return key.require(Scope.JOBS_WRITE, Scope.ANALYSES_READ, *EVERYONES)


async def reader(key: AnyCaller) -> ApiKey:
    """A caller that may read observations and analyses."""
    return key.require(Scope.ANALYSES_READ)


async def metrics_reader(
    request: Request,
    gateway: GatewayDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    header: Annotated[str | None, Security(HEADER)],
) -> ApiKey:
    """Return a caller that may read the metrics; not rate-limited, so that it works without Redis."""
    del bearer, header
    key = await authenticate(gateway, request.headers, counted=False)
    return key.require(Scope.METRICS_READ)


async def administrator(key: AnyCaller) -> ApiKey:
    """Return a caller that may change what all users get."""
    return key.require(Scope.ADMIN)


ObservationWriter = Annotated[ApiKey, Depends(observation_writer)]
UploadReader = Annotated[ApiKey, Depends(observation_sender_or_reader)]
JobWriter = Annotated[ApiKey, Depends(job_writer)]
JobReader = Annotated[ApiKey, Depends(job_reader)]
Reader = Annotated[ApiKey, Depends(reader)]
MetricsReader = Annotated[ApiKey, Depends(metrics_reader)]
Administrator = Annotated[ApiKey, Depends(administrator)]


def find_job(gateway: Gateway, key: ApiKey, job_id: str, *, change: bool = False) -> JobRecord:
    """Return a job that the caller sees, with its place in the queue.

    Arguments:
        gateway: Where the jobs are.
        key: The caller.
        job_id: The job.
        change: Whether the caller is about to cancel it.

    Raises:
        NoSuchRecord: If there is none; the same is said of one that the caller does not see.
        Forbidden: If it is to be changed and belongs to another key or to nobody.
    """
    job = gateway.stores.jobs.read(job_id)
    if not key.sees(job.api_key):
        raise gateway.stores.jobs.missing(job_id)
    if change and not key.may_change(job.api_key):
        raise _anothers(key, f"job '{job_id}'")
    return job


def find_batch(
    gateway: Gateway, key: ApiKey, batch_id: str, *, change: bool = False
) -> BatchRecord:
    """Return an upload that the caller sees, or whose content it has sent as well.

    Arguments:
        gateway: Where the uploads are.
        key: The caller.
        batch_id: The upload.
        change: Whether the caller is about to retry it.

    Raises:
        NoSuchRecord: If there is none; the same is said of one that the caller does not see.
        Forbidden: If it is to be changed and belongs to another key or to nobody.
    """
    batches = gateway.stores.batches
    batch = batches.get(batch_id)
    sees, changes = key.sees(batch.api_key), key.may_change(batch.api_key)
    if sees and (changes or not change) or batches.sent_by(batch, key.id):
        return batch
    if not sees:
        raise batches.missing(batch_id)
    raise _anothers(key, f"upload '{batch_id}'")


def _anothers(key: ApiKey, what: str) -> Forbidden:
    return Forbidden(
        f"Expected a key with the scope {Scope.ALL_WRITE}: {what} was not sent with key '{key.id}'.",
        key=key.id,
        scopes=[Scope.ALL_WRITE],
    )


def limits_of(gateway: Gateway, key: ApiKey) -> dict[str, int]:
    """Return the limits that hold for a key, its own or the gateway's; 0 for no limit."""
    of_gateway = {
        "requests_per_minute": gateway.settings.requests_per_minute,
        "queued_jobs": gateway.settings.queued_jobs_per_key,
        "bytes_per_day": gateway.settings.bytes_per_day_per_key,
        "rows_per_day": gateway.settings.rows_per_day_per_key,
        "jobs_per_day": gateway.settings.jobs_per_day_per_key,
    }
    own = {name: getattr(key, name) for name in LIMITS}
    return {name: of_gateway[name] if own[name] is None else own[name] for name in LIMITS}


def charge_of(gateway: Gateway, key: ApiKey, what: Use, amount: int) -> Charge:
    """Return what an upload or job adds to the day of a key."""
    return Charge(what, amount, limits_of(gateway, key)[f"{what}_per_day"])


def check_queue_quota(gateway: Gateway, key: ApiKey) -> None:
    """Refuse another job to a key with too many unfinished ones.

    Raises:
        QueueQuota: At or above the quota.
    """
    quota = limits_of(gateway, key)["queued_jobs"]
    if key.id and quota and (unfinished := gateway.stores.jobs.active(key.id)) >= quota:
        raise QueueQuota(
            f"Expected at most {quota} unfinished jobs with key '{key.id}'; there are {unfinished}. "
            "Wait for one to end or cancel one.",
            30,
        )
