"""Dashboards, alerts and their documentation: files that real Prometheus tools accept and that agree."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.metrics import GatewayMetrics
from tests.deploy.observability import (
    DASHBOARDS,
    NEEDS_PROMETHEUS,
    PROMETHEUS,
    REPOSITORY,
    alerts,
    family,
    metrics_of,
    queries,
    recorded,
)
from worker.contract.layout import Layout
from worker.contract.store import open_stores

GRAFANA = REPOSITORY / "deploy/grafana"
CASES = sorted(PROMETHEUS.glob("*.test.yml"))


def promtool(*arguments: object) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """Names of all families that a gateway shows, with their types."""
    stores = open_stores("redis://127.0.0.1:1/0")  # never asked
    metrics = GatewayMetrics(stores, Layout(Path("nowhere")))
    return {f.name: f.type for f in metrics.registry.collect() if f.name.startswith("appa_")}


def asked_about(case: Path, folder: Path) -> Path:
    """Copy a file of cases beside the groups of rules that it asks about, or that record series.

    All groups are evaluated at every step of every case, which for days of silence takes most of the time.
    """
    cases = yaml.safe_load(case.read_text())["tests"]
    asked = {test["alertname"] for one in cases for test in one["alert_rule_test"]}
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    rules["groups"] = [
        group
        for group in rules["groups"]
        if any("record" in rule or rule["alert"] in asked for rule in group["rules"])
    ]
    folder.mkdir()
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    return Path(shutil.copy(case, folder))


@NEEDS_PROMETHEUS
def test_alerts_are_raised_when_they_should_be(tmp_path):
    promtool("check", "config", PROMETHEUS / "prometheus.yml")
    promtool("test", "rules", *(asked_about(case, tmp_path / case.stem) for case in CASES))


def test_every_alert_is_tried():
    raised = {
        rule["alertname"]
        for path in CASES
        for case in yaml.safe_load(path.read_text())["tests"]
        for rule in case["alert_rule_test"]
        if rule["exp_alerts"]
    }
    assert raised == {rule["alert"] for rule in alerts()}


def test_every_alert_leads_to_a_section_of_the_runbook():
    page = (REPOSITORY / "docs/runbook.md").read_text()
    sections = re.findall(r"^### (Appa\w+)$", page, re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in alerts())
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        wanted = ("none",) if rule["alert"] == "AppaWatchdog" else ("page", "ticket")
        assert rule["labels"]["severity"] in wanted


@NEEDS_PROMETHEUS
def test_the_queries_of_dashboards_are_valid(tmp_path):
    rules = [{"record": "a:b", "expr": query} for query in queries().values()]
    for number, rule in enumerate(rules):
        rule["record"] = f"query:{number}"
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", path)


def test_queries_ask_for_what_is_shown_as_what_it_is(shown):
    """A name that nothing has, a rate of a gauge, or a counter without one, would show nonsense."""
    asked = queries() | {a["alert"]: a["expr"] for a in alerts()} | recorded()
    for where, query in asked.items():
        for name in metrics_of(query):
            found = family(name, set(shown))
            assert found is not None, (where, name)
            rises = shown[found] != "gauge"
            rated = re.search(rf"(rate|increase)\({name}\b", query) is not None
            assert rated == rises, (where, name, shown[found])


def test_every_job_that_is_scraped_is_missed_when_it_is_gone():
    """`up == 0` says nothing of a target that is not in the configuration any more."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    expressions = {rule["expr"] for rule in alerts()}
    for job in (scraped["job_name"] for scraped in config["scrape_configs"]):
        assert {f'up{{job="{job}"}} == 0', f'absent(up{{job="{job}"}})'} <= expressions


def test_series_that_rules_ask_for_are_recorded():
    asked = {name for rule in alerts() for name in re.findall(r"\bappa:\w+", rule["expr"])}
    assert asked == set(recorded())


def test_labels_of_queries_are_ones_that_the_metric_has(shown):
    page = (REPOSITORY / "docs/metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(appa_\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    for where, query in queries().items():
        for name, selector in re.findall(r"(appa_\w+)\{([^}]*)\}", query):
            row = rows.get(name) or rows[re.sub(r"_(bucket|count|sum)$", "", name)]
            labels = set(row.split(", ")) | {"le"}
            asked = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector))
            assert asked <= labels, (where, name)


def test_dashboards_can_be_imported_anywhere():
    assert [board.stem for board in DASHBOARDS] == ["feeds", "operations", "science"]
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        assert board["uid"] == f"appa-{path.stem}"
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(set(numbers)) == len(numbers)
        occupied: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + i, place["y"] + j)
                for i in range(place["w"])
                for j in range(place["h"])
            }
            assert not cells & occupied, panel["title"]
            assert max(x for x, _ in cells) < 24
            occupied |= cells
            for target in panel.get("targets", []):
                assert target["datasource"]["uid"] == "${datasource}"


def test_grafana_finds_data_source_and_dashboards():
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/appa.yaml").read_text())
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    mounted = dict(v.split(":")[1::-1] for v in compose["grafana"]["volumes"])
    assert mounted[provider["providers"][0]["options"]["path"]] == "./deploy/grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"


def test_the_page_of_metrics_names_all_of_them(shown):
    page = (REPOSITORY / "docs/metrics.md").read_text()
    named = set(re.findall(r"^\| `(appa_\w+)` \|", page, re.MULTILINE))
    assert named == {n + ("_total" if t == "counter" else "") for n, t in shown.items()}
