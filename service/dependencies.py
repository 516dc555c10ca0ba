"""What routes ask for by type: the gateway, and the key of the caller with its scopes."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.credentials import authenticate
from service.errors import QueueQuota
from service.gateway import Gateway
from service.keys import ApiKey, Scope

BEARER = HTTPBearer(auto_error=False, description="`Authorization: Bearer appa_…`")
HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, alone.")


async def get_gateway(request: Request) -> Gateway:
    """The gateway of the application that serves this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(get_gateway)]


async def get_caller(
    request: Request,
    gateway: GatewayDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    header: Annotated[str | None, Security(HEADER)],
) -> ApiKey:
    """The key of this request, counted against its rate.

    Raises:
        Unauthenticated: Without a key where one is needed, or with a wrong one.
        RateLimited: Above the key's rate.
    """
    # Read by `authenticate`; declared as parameters for the OpenAPI document.
    del bearer, header
    pieces = "range" in request.headers and "/v1/analyses/" in request.url.path
    return await authenticate(gateway, request.headers, pieces=pieces)


AnyCaller = Annotated[ApiKey, Depends(get_caller)]


async def observation_writer(key: AnyCaller) -> ApiKey:
    """A caller that may upload."""
    return key.need(Scope.OBSERVATIONS_WRITE)


async def observation_sender_or_reader(key: AnyCaller) -> ApiKey:
    """A caller that may see uploads."""
    return key.need(Scope.OBSERVATIONS_WRITE, Scope.ANALYSES_READ)


async def job_writer(key: AnyCaller) -> ApiKey:
    """A caller that may submit and cancel jobs."""
    return key.need(Scope.JOBS_WRITE)


async def job_reader(key: AnyCaller) -> ApiKey:
    """A caller that may see jobs."""
    return key.need(Scope.JOBS_WRITE, Scope.ANALYSES_READ)


async def reader(key: AnyCaller) -> ApiKey:
    """A caller that may read observations and analyses."""
    return key.need(Scope.ANALYSES_READ)


ObservationWriter = Annotated[ApiKey, Depends(observation_writer)]
UploadReader = Annotated[ApiKey, Depends(observation_sender_or_reader)]
JobWriter = Annotated[ApiKey, Depends(job_writer)]
JobReader = Annotated[ApiKey, Depends(job_reader)]
Reader = Annotated[ApiKey, Depends(reader)]


def check_queue_quota(gateway: Gateway, key: ApiKey) -> None:
    """Refuses another job to a key with too many unfinished ones.

    Raises:
        QueueQuota: At or above the quota.
    """
    quota = gateway.settings.queued_jobs_per_key if key.queued_jobs is None else key.queued_jobs
    if key.id and quota and (unfinished := gateway.stores.jobs.active(key.id)) >= quota:
        raise QueueQuota(
            f"Expected at most {quota} unfinished jobs with key '{key.id}'; there are {unfinished}. "
            "Wait for one to end or cancel one.",
            30,
        )
