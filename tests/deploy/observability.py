"""What the dashboards and alerts ask for, and a real Prometheus that is asked it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from deploy.local import free_port
from tests.worker.processes import wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((REPOSITORY / "deploy/grafana/dashboards").glob("*.json"))
PROMETHEUS = REPOSITORY / "deploy/prometheus"
NEEDS_PROMETHEUS = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="prometheus is not installed",
)


def queries() -> dict[str, str]:
    """Every query of the dashboards, by its place, with the interval that Grafana would fill in."""
    return {
        f"{board.stem}: {panel['title']}: {target['refId']}": target["expr"].replace(
            "$__rate_interval", "5m"
        )
        for board in DASHBOARDS
        for panel in json.loads(board.read_text())["panels"]
        for target in panel.get("targets", [])
    }


def alerts() -> list[dict]:
    return [rule for rule in _rules() if "alert" in rule]


def recorded() -> dict[str, str]:
    """Expressions of the recording rules, by the names of the series that they make."""
    return {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}


def _rules() -> list[dict]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"\bappa_[a-z0-9_]+", expression))


def family(metric: str, families: set[str]) -> str | None:
    """The family that a metric of a query belongs to; None if there is none of these."""
    names = (metric, re.sub(r"_(total|bucket|count|sum)$", "", metric))
    return next((name for name in names if name in families), None)


class Prometheus:
    """A server that scrapes one gateway by our configuration, once a second."""

    def __init__(self, url: str, folder: Path) -> None:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"] = [
            {"targets": [httpx.URL(url).netloc.decode()]}
        ]
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(PROMETHEUS / "alerts.yml", folder)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> "Prometheus":
        try:
            wait_for(self.scraped, 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def scraped(self) -> bool:
        """Whether it has scraped often enough for rates."""
        try:
            if httpx.get(f"{self.url}/-/ready", timeout=30).status_code != 200:
                return False
        except httpx.HTTPError:
            return False
        found = self.query('count_over_time(up{job="appa"}[1m])')
        return bool(found) and float(found[0]["value"][1]) >= 3

    def query(self, expression: str) -> list[dict]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.status_code == 200, (expression, answer.text)
        return answer.json()["data"]["result"]

    def raised(self) -> set[str]:
        """Names of the alerts that wait or fire."""
        answer = httpx.get(f"{self.url}/api/v1/alerts", timeout=30).json()
        return {alert["labels"]["alertname"] for alert in answer["data"]["alerts"]}
