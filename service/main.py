"""The gateway's application: `create_app` builds everything, so that a test builds its own."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from service.datasets.access import PREFIX, DataAccess
from service.gateway import open_gateway, running
from service.middleware import BodyLimit, RequestContext
from service.openapi import describe
from service.problems import add_problem_handlers
from service.routes import (
    analyses,
    capabilities,
    catalogue,
    cycles,
    events,
    health,
    jobs,
    observations,
    pins,
    problems,
    templates,
    verification,
    webhooks,
)
from service.settings import GatewaySettings
from service.version import VERSION

WEB = Path(__file__).parent / "web"
ROUTERS: tuple[APIRouter, ...] = (
    observations.router,
    templates.router,
    jobs.router,
    pins.router,
    analyses.router,
    catalogue.router,
    verification.router,
    cycles.router,
    events.router,
    webhooks.router,
    capabilities.router,
    health.router,
    problems.router,
)
"""A new router is a line here; it carries its own prefix."""


async def viewer() -> FileResponse:
    """The viewer: one page, no build step."""
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:",
    }
    return FileResponse(WEB / "index.html", headers=headers)


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """The application for `settings` (default: from the environment)."""
    settings = settings or GatewaySettings()
    app = FastAPI(
        title="Appa Service",
        version=VERSION,
        lifespan=running,
        root_path=settings.root_path,
        redirect_slashes=False,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    gateway = app.state.gateway = open_gateway(settings)
    for router in ROUTERS:
        app.include_router(router)
    app.mount(PREFIX, DataAccess(gateway), name="data")
    app.mount("/web", StaticFiles(directory=WEB), name="web")
    app.add_api_route("/", viewer, include_in_schema=False)
    add_problem_handlers(app)
    app.add_middleware(BodyLimit, limit=settings.max_json_bytes, except_path="/v1/observations")
    app.add_middleware(RequestContext, metrics=gateway.metrics)
    describe(app)
    return app
