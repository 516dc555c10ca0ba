"""Pins: results that retention keeps whatever their age."""

from typing import Annotated

from fastapi import APIRouter, Body, Path
from pydantic import BaseModel, ConfigDict, Field

from service.dependencies import GatewayDep, JobWriter, Reader
from service.errors import NotFound
from service.openapi import problems
from worker.jobs.pins import Pin, pin, pins, unpin

router = APIRouter(prefix="/v1", tags=["analyses"])

AnalysisId = Annotated[
    str,
    Path(
        description="From a job or a list.",
        max_length=100,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
    ),
]


class PinRequest(BaseModel):
    """What a pin says."""

    model_config = ConfigDict(extra="forbid")

    note: str = Field(default="", max_length=500, description="What it is kept for.")


@router.get("/pins", responses=problems())
def list_pins(gateway: GatewayDep, _: Reader) -> list[Pin]:
    """All pins, oldest first."""
    return pins(gateway.layout)


@router.post("/analyses/{analysis_id}/pin", responses=problems("not_found", "storage_error"))
def pin_analysis(
    gateway: GatewayDep,
    key: JobWriter,
    analysis_id: AnalysisId,
    request: Annotated[PinRequest | None, Body(description="May be left out.")] = None,
) -> Pin:
    """Keeps an analysis; one that is pinned keeps its first pin."""
    note = request.note if request else ""
    return pin(gateway.layout, Pin(analysis_id=analysis_id, by=key.id, note=note))


@router.delete(
    "/analyses/{analysis_id}/pin", status_code=204, responses=problems("not_found", "storage_error")
)
def unpin_analysis(gateway: GatewayDep, _: JobWriter, analysis_id: AnalysisId) -> None:
    """Takes the pin out; the analysis is kept as long as others of its kind."""
    if not unpin(gateway.layout, analysis_id):
        raise NotFound(f"Expected a pinned analysis; '{analysis_id}' has no pin.")
