"""Let an assistant ask a gateway: `appa mcp`, a server of the Model Context Protocol over stdio.

Its tools only read: published results, explanations of cycles, outcomes of observations, verification
series, and values at a place. Error messages of the gateway are passed on to the assistant unchanged.
See https://modelcontextprotocol.io
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

import typer
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from appa_client import Analysis, AppaClientError, AsyncAppaClient
from deploy.console import DEFAULT_URL, Key, Url

__all__ = ["build_server", "mcp_app"]

mcp_app = typer.Typer(add_completion=False)

INSTRUCTIONS = """\
Analyses of the atmosphere by data assimilation. A cycle is an hour, analysed early and again, final,
with late observations. To say why a station was rejected: `analyses` or `explain_cycle` for the
analysis, then `observations_of_analysis` with the station; quote the row. O-B is observation minus
background, O-A observation minus analysis. Units are SI, times UTC. If `simulated` is among the flags
say so: the weather is that of a simulation.
"""

Time = Annotated[datetime | None, Field(description="UTC, such as 2025-01-01T06:00:00Z.")]
Names = Annotated[list[str] | None, Field(description="Empty for all.")]
Limit = Annotated[int, Field(ge=1, le=500, description="Most rows.")]
AnalysisFlavour = Annotated[
    Literal["early", "final"] | None, Field(description="Of the cycles; empty for any.")
]


class Tools:
    """What an assistant may ask; each method is a tool.

    Arguments:
        url: Address of the gateway.
        key: API key with the scope `read`, if one is needed.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url, key

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncAppaClient]:
        try:
            async with AsyncAppaClient(self._url, self._key, attempts=2) as client:
                yield client
        except AppaClientError as error:
            raise ToolError(f"{error.code}: {error}") from error

    async def analyses(
        self,
        kind: Annotated[str | None, Field(description="`filtering`, `forecast` …")] = None,
        flavour: AnalysisFlavour = None,
        valid_from: Time = None,
        valid_to: Time = None,
        limit: Limit = 10,
    ) -> dict[str, Any]:
        """List published analyses and forecasts, latest valid time first."""
        filters = {"kind": kind, "flavour": flavour, "limit": limit}
        async with self._client() as client:
            found = await client.analyses(valid_from=valid_from, valid_to=valid_to, **filters)
        return {"analyses": [_summary(analysis) for analysis in found]}

    async def explain_cycle(
        self,
        valid_time: Annotated[datetime, Field(description="The hour, UTC.")],
        flavour: Literal["early", "final"] = "final",
    ) -> dict[str, Any]:
        """Explain an hour: what was used, late or rejected and why, what changed, its state."""
        async with self._client() as client:
            found = await client.explain_cycle(valid_time, flavour)
        return found.model_dump(mode="json")

    async def observations_of_analysis(
        self,
        analysis_id: str,
        stations: Names = None,
        networks: Names = None,
        variables: Names = None,
        rejected_by: Names = None,
        outcome: Literal["all", "used", "rejected"] = "all",
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """Return what an analysis made of observations, a row each.

        A row has value, error, O-B, O-A, spread, outcome and what that outcome means; `counts` are
        of the whole analysis.
        """
        filters = {"networks": networks, "variables": variables, "rejected_by": rejected_by}
        async with self._client() as client:
            return await client.feedback(
                analysis_id, stations=stations, outcome=outcome, limit=limit, **filters
            )

    async def stored_observations(
        self,
        start: Annotated[datetime, Field(description="Observed after this time, UTC.")],
        end: Annotated[datetime, Field(description="Observed up to this time, UTC.")],
        box: Annotated[str | None, Field(description="West,south,east,north in degrees.")] = None,
        stations: Names = None,
        networks: Names = None,
        variables: Names = None,
        outcome: Literal["all", "used", "rejected"] = "all",
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """Return observations as they arrived, with the checks made before any analysis (GeoJSON)."""
        where = {"box": box, "stations": stations, "networks": networks, "variables": variables}
        async with self._client() as client:
            body = await client.observations(
                "geojson", start=start, end=end, outcome=outcome, limit=limit, **where
            )
        found: dict[str, Any] = json.loads(body)
        return found

    async def verification(
        self,
        statistic: Annotated[
            list[str], Field(description="`rms_background`, `rms_analysis`, `chi2`, `bias_…` …")
        ],
        network: Annotated[str, Field(description="Report type, or `all`.")] = "all",
        variable: Annotated[str | None, Field(description="Variable id, or `all`.")] = None,
        flavour: Literal["early", "final", "job"] = "final",
        valid_from: Time = None,
        valid_to: Time = None,
        limit: Limit = 200,
    ) -> dict[str, Any]:
        """Return the newest values of verification series: departures, chi-square, skill."""
        times = {"valid_from": valid_from, "valid_to": valid_to}
        async with self._client() as client:
            rows = await client.verification(
                statistic=statistic, network=network, variable=variable, flavour=flavour, **times
            )
        shown = [row.model_dump(mode="json") for row in rows[-limit:]]
        return {"total": len(rows), "rows": shown}

    async def values_at(
        self,
        collection: Annotated[
            str, Field(description="`filtering-final`, `forecast` …, or the id of a result.")
        ],
        longitude: Annotated[float, Field(ge=-360, le=360)],
        latitude: Annotated[float, Field(ge=-90, le=90)],
        parameters: Annotated[
            list[str], Field(description="`t2m_mean`, `u10_mean`, `t_spread`, `msl` (members) …")
        ],
        levels: Annotated[str | None, Field(description="hPa: `500`, `850,500`.")] = None,
        time: Annotated[str | None, Field(description="A time, or `<start>/<end>`.")] = None,
    ) -> dict[str, Any]:
        """Return model values at a place, with their units (OGC API EDR, CoverageJSON)."""
        options = {"parameters": parameters, "z": levels, "datetime": time}
        async with self._client() as client:
            return await client.position(collection, longitude, latitude, **options)

    async def status(self) -> dict[str, Any]:
        """Return whether jobs can run, every check of the system, and the vocabulary of names."""
        async with self._client() as client:
            ready = await client.readiness()
            able = await client.capabilities()
        kept = ("networks", "variables", "job_kinds", "workers")
        found = {name: able[name] for name in kept if name in able}
        return {"readiness": ready.model_dump(mode="json"), **found}


def _summary(analysis: Analysis) -> dict[str, Any]:
    kept = {"id", "kind", "flavour", "revision", "valid_time", "members", "flags", "cut_off"}
    counts = {"observations": analysis.observations}
    return {**analysis.model_dump(mode="json", include=kept), **counts}


def build_server(url: str, key: str | None) -> MCPServer:
    """Return the server with its tools.

    Arguments:
        url: Address of the gateway.
        key: API key, if one is needed.
    """
    server = MCPServer("appa", instructions=INSTRUCTIONS, log_level="WARNING")
    tools = Tools(url, key)
    named: list[Callable[..., Any]] = [
        tools.analyses,
        tools.explain_cycle,
        tools.observations_of_analysis,
        tools.stored_observations,
        tools.verification,
        tools.values_at,
        tools.status,
    ]
    for tool in named:
        server.tool(annotations=ToolAnnotations(read_only_hint=True))(tool)
    return server


@mcp_app.command()
def mcp(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Serve a gateway to assistants over the Model Context Protocol, on standard input and output."""
    build_server(url, key).run("stdio")
