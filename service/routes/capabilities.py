"""What can be asked of this system now."""

from fastapi import APIRouter

from model.domain.observations import QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from service.containers import CONTAINERS
from service.dependencies import AnyCaller, GatewayDep
from service.openapi import problems
from service.schemas import CapabilitiesView, UploadFormat
from service.version import VERSION
from worker.jobs.workers import merge

router = APIRouter(prefix="/v1", tags=["system"])


@router.get("/capabilities", responses=problems())
def read_capabilities(gateway: GatewayDep, _: AnyCaller) -> CapabilitiesView:
    """Models, formats and networks of the workers that run, and the vocabulary."""
    reports = gateway.stores.workers.alive()
    can = merge([r for r in reports if r.ready])
    settings = gateway.settings
    return CapabilitiesView(
        version=VERSION,
        models=can.models,
        formats=can.formats,
        decoders=can.decoders,
        networks=can.networks or sorted(REPORT_TYPES),
        variables={v.id: v.units for v in VARIABLES.values()},
        qc_outcomes={f.name: f.meaning for f in QC_FLAGS.values()},
        uploads=[
            UploadFormat(name=c.name, meaning=c.meaning, media_type=c.media_type)
            for c in CONTAINERS.values()
        ],
        job_kinds=["filtering", "forecast", "reanalysis"],
        limits={
            "max_upload_bytes": settings.max_upload_bytes,
            "query_max_rows": settings.query_max_rows,
            "edr_max_values": settings.edr_max_values,
            "requests_per_minute": settings.requests_per_minute,
            "queued_jobs_per_key": settings.queued_jobs_per_key,
        },
        workers=reports,
    )
