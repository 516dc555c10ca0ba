"""`appa mcp`, asked by the client of the protocol's own library over standard input and output."""

import os
import sys
from datetime import timedelta

import departures
import pytest
from gateway_process import REPOSITORY, GatewayProcess
from mcp import StdioServerParameters
from mcp.client.client import Client
from published import NOON, Wanted, publish_all

VALID = NOON + timedelta(days=320)


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory):
    wanted = {"mcp-an": Wanted(valid=VALID, flags=["simulated"], feedback=departures.few())}
    return publish_all(gateway.layout, tmp_path_factory.mktemp("mcp"), wanted)


def served(url: str) -> StdioServerParameters:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "client")])
    command = ["-m", "deploy.cli", "mcp", "--url", url]
    return StdioServerParameters(
        command=sys.executable, args=command, cwd=REPOSITORY, env={"PYTHONPATH": path}
    )


async def test_an_agent_learns_why_a_station_was_rejected(gateway: GatewayProcess, files) -> None:
    async with Client(served(gateway.url)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {
            "analyses", "explain_cycle", "observations_of_analysis", "stored_observations",
            "verification", "values_at", "status",
        }  # fmt: skip
        assert all(tool.annotations.read_only_hint for tool in tools.values())
        assert tools["values_at"].input_schema["required"][0] == "collection"

        asked = {"valid_from": VALID.isoformat(), "valid_to": VALID.isoformat()}
        found = (await client.call_tool("analyses", asked)).structured_content
        [analysis] = found["analyses"]
        assert (analysis["id"], analysis["flags"]) == ("mcp-an", ["simulated"])

        asked = {"analysis_id": "mcp-an", "stations": ["S2"]}
        found = (await client.call_tool("observations_of_analysis", asked)).structured_content
        [row] = found["rows"]
        assert (row["station_id"], row["outcome"]) == ("S2", "background_check")
        assert (row["background_departure"], row["obs_value"]) == (-2.0, 279.0)
        assert "background" in row["meaning"]

        asked = {"collection": "mcp-an", "longitude": 45.0, "latitude": 30.0}
        asked |= {"parameters": ["t2m_mean"]}
        found = (await client.call_tool("values_at", asked)).structured_content
        coverage = found.get("coverages", [found])[0]
        held = files["mcp-an"]["t2m_mean"].sel(longitude=45.0, latitude=30.0)[0]
        assert coverage["ranges"]["t2m_mean"]["values"] == [pytest.approx(float(held), rel=1e-6)]

        period = {"start": "2025-01-01T00:00:00Z", "end": "2025-01-01T01:00:00Z"}
        found = await client.call_tool("stored_observations", period)
        assert found.structured_content["type"] == "FeatureCollection"
        found = await client.call_tool("status", {})
        assert "synop" in found.structured_content["networks"]


async def test_refusals_are_sentences(gateway: GatewayProcess) -> None:
    async with Client(served(gateway.url)) as client:
        gone = await client.call_tool("observations_of_analysis", {"analysis_id": "an-none"})
        assert gone.is_error
        assert "an-none" in gone.content[0].text
        bad = await client.call_tool("verification", {"statistic": ["chi2"], "limit": 0})
        assert bad.is_error
    async with Client(served("http://127.0.0.1:9")) as client:
        away = await client.call_tool("analyses", {})
        assert away.is_error
        assert "Is it running" in away.content[0].text
