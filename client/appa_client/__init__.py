"""Talk to an Appa gateway from Python.

    from appa_client import AppaClient

    with AppaClient("http://127.0.0.1:8000") as appa:
        batch = appa.upload("synop.bufr")
        appa.wait_batch(batch.id)
        job = appa.submit({"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"})
        appa.wait(job.id)
        analysis = appa.open(job.analysis_id)  # an xarray.Dataset

`AsyncAppaClient` has the same methods for asyncio. Errors are subclasses of `AppaClientError`.
"""

from appa_client._async.client import AsyncAppaClient
from appa_client._sync.client import AppaClient
from appa_client.errors import (
    AppaClientError,
    AuthenticationError,
    BadSignature,
    GatewayError,
    IntegrityError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
)
from appa_client.events import (
    CreatedWebhook,
    Delivery,
    Event,
    EventType,
    FeedEvent,
    JobEvent,
    Webhook,
    read_webhook,
)
from appa_client.records import (
    Analysis,
    AnalysisFile,
    Batch,
    BatchState,
    Challengers,
    Cycle,
    CycleExplanation,
    CycleState,
    Difference,
    Flavour,
    Job,
    JobState,
    Progress,
    Readiness,
    ReadinessCheck,
    Reign,
    SeriesRow,
    SourceStatus,
    Trial,
    cycle_key,
)

__all__ = [
    "Analysis",
    "AnalysisFile",
    "AppaClient",
    "AppaClientError",
    "AsyncAppaClient",
    "AuthenticationError",
    "BadSignature",
    "Batch",
    "BatchState",
    "Challengers",
    "CreatedWebhook",
    "Cycle",
    "CycleExplanation",
    "CycleState",
    "Delivery",
    "Difference",
    "Event",
    "EventType",
    "FeedEvent",
    "Flavour",
    "GatewayError",
    "IntegrityError",
    "InvalidRequestError",
    "Job",
    "JobEvent",
    "JobFailedError",
    "JobState",
    "NotFoundError",
    "Progress",
    "RateLimitedError",
    "Readiness",
    "ReadinessCheck",
    "Reign",
    "SeriesRow",
    "SourceStatus",
    "Trial",
    "UnavailableError",
    "Webhook",
    "cycle_key",
    "read_webhook",
]
