"""The Helm chart, rendered by Helm itself: valid for Kubernetes, as the one-machine stack, as before.

`helm-python-sdk` is Helm's own Go code; it runs in a process apart, for it brings a runtime of its own.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from deploy.local import PROCESSES
from service.settings import GatewaySettings
from worker.contract.queues import QUEUES
from worker.settings import WorkerSettings

pytestmark = pytest.mark.skipif(
    find_spec("helm_python") is None, reason="helm-python-sdk is not made for this machine"
)
CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "appa"
GOLDEN = Path(__file__).parent / "charts"
METRICS = CHART.parents[2] / "docs" / "metrics.md"
RENDER = """
import json, sys
import helm_python as helm
path, values = sys.argv[1], json.loads(sys.argv[2])
report = helm.lint(path, values=values, strict=True)
with helm.Chart.load(path) as chart:
    try:
        manifests = chart.render(values, name="appa", namespace="weather")
    except helm.HelmError as error:
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({"lint": report, "manifests": manifests}))
"""
SMALLEST = {"redis": {"secret": "appa-redis"}}
CLAIMED = {"data": {"existingClaim": "weather-data"}, "models": {"existingClaim": "checkpoints"}}
SCALED = {name: {"autoscaling": {"enabled": True}} for name in ("ingest", "ingest-large", "gpu")}
LARGEST = {
    **SMALLEST,
    **CLAIMED,
    "settings": {"APPA_MODELS": "/models/appa-t31", "APPA_DISK_LOW_BYTES": "10737418240"},
    "settingsSecrets": ["appa-wis2"],
    "images": {"gateway": {"digest": "sha256:" + "0" * 64}, "pullSecrets": [{"name": "registry"}]},
    "gateway": {
        "ingress": {"enabled": True, "className": "nginx", "host": "appa.example.org",
                    "tlsSecret": "appa-tls", "annotations": {"a/b": "c"}},
        "from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
    },
    "workers": {**SCALED, "gpu": {**SCALED["gpu"], "nodeSelector": {"gpu": "h100"}}},
    "monitoring": {"serviceMonitor": {"enabled": True, "secret": "appa-metrics"}},
}  # fmt: skip
CASES = {"smallest": SMALLEST, "largest": LARGEST}
CUSTOM = ("ScaledObject", "ServiceMonitor")


@cache
def _answer(values: str) -> dict:
    command = [sys.executable, "-c", RENDER, str(CHART), values]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def answer(values: dict) -> dict:
    return _answer(json.dumps(values))


def documents(values: dict) -> list[dict]:
    found = answer(values)
    assert "error" not in found, found
    texts = (t for n, t in sorted(found["manifests"].items()) if n.endswith(".yaml"))
    return [d for text in texts for d in yaml.safe_load_all(text) if d]


@pytest.fixture(params=CASES)
def rendered(request) -> list[dict]:
    return documents(CASES[request.param])


def of_kind(rendered: list[dict], kind: str) -> dict[str, dict]:
    return {d["metadata"]["name"]: d for d in rendered if d["kind"] == kind}


def containers(rendered: list[dict]) -> dict[str, tuple[dict, dict]]:
    """Pod and container of each Deployment."""
    pods = {n: d["spec"]["template"] for n, d in of_kind(rendered, "Deployment").items()}
    return {name: (pod, pod["spec"]["containers"][0]) for name, pod in pods.items()}


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_no_fault_and_renders_what_it_did(case):
    report = answer(CASES[case])["lint"]
    assert report["errors"] == []
    assert all(m["severity"] < 2 for m in report["messages"])  # no warning
    text = yaml.safe_dump_all(documents(CASES[case]), sort_keys=True)
    golden = GOLDEN / f"{case}.yaml"
    if os.environ.get("APPA_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "look at the difference, then APPA_WRITE_GOLDEN=1"


def test_kubernetes_takes_every_document(rendered):
    for document in rendered:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, "1.31", strict=True)
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "appa"


def test_the_pods_run_what_one_machine_runs(rendered):
    commands = {n.removeprefix("appa-"): tuple(c["command"]) for n, (_, c) in
                containers(rendered).items()}  # fmt: skip
    commands["model"] = commands.pop("gpu")
    assert commands == PROCESSES


def test_no_pod_is_root_writes_its_image_or_holds_a_secret(rendered):
    known = {f"APPA_{n.upper()}" for n in WorkerSettings.model_fields}
    known |= {f"APPA_{n.upper()}" for n in GatewaySettings.model_fields}
    for pod, container in containers(rendered).values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001
        assert not pod["spec"]["automountServiceAccountToken"]
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        given = {e["name"]: e for e in container["env"]}
        assert set(given) - {"HOME"} <= known
        assert given["APPA_REDIS_URL"]["valueFrom"]["secretKeyRef"] == {
            "name": "appa-redis", "key": "url",
        }  # fmt: skip
        assert "memory" in container["resources"]["limits"]
    assert not of_kind(rendered, "Secret")


def test_every_pod_is_probed_and_may_be_moved(rendered):
    budgets = of_kind(rendered, "PodDisruptionBudget")
    for name, (pod, container) in containers(rendered).items():
        budget = budgets[name]["spec"]["selector"]["matchLabels"]
        assert budget.items() <= pod["metadata"]["labels"].items()
        if name == "appa-gateway":
            assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready?part=gateway"
            continue
        probe = container["livenessProbe"]["exec"]["command"]
        assert probe == ["appa", "probe", *container["command"][2:]]
        assert pod["spec"]["terminationGracePeriodSeconds"] >= 30


def test_policies_select_pods_that_exist_and_open_no_more_than_is_needed(rendered):
    pods = {n: p["metadata"]["labels"] for n, (p, _) in containers(rendered).items()}
    policies = of_kind(rendered, "NetworkPolicy")
    chosen = {
        name: {n for n, labels in pods.items() if
               policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()}
        for name, policy in policies.items()
    }  # fmt: skip
    assert chosen["appa"] == set(pods)
    assert "ingress" not in policies["appa"]["spec"]  # and so nobody comes in
    assert {n for n, p in policies.items() if "ingress" in p["spec"]} == {"appa-gateway"}
    out = {n for n, p in policies.items() if "egress" in p["spec"]} - {"appa"}
    assert out == {"appa-scheduler", "appa-sources"}
    assert all(chosen[name] == {name} for name in out | {"appa-gateway"})


def test_the_gateway_reaches_an_issuer_of_tokens_where_it_is_let():
    let_out = [{"ports": [{"port": 443, "protocol": "TCP"}]}]
    rendered = documents({**SMALLEST, "gateway": {"egress": let_out}})
    policy = of_kind(rendered, "NetworkPolicy")["appa-gateway"]
    kubernetes_validate.validate(policy, "1.31", strict=True)
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == let_out
    assert policy["spec"]["ingress"]  # as before


def test_workers_grow_with_the_age_of_what_waits():
    rendered = documents(LARGEST)
    deployments = of_kind(rendered, "Deployment")
    scaled = of_kind(rendered, "ScaledObject")
    assert {n.removeprefix("appa-") for n in scaled} == set(QUEUES) - {"products"}
    assert "| `appa_queue_oldest_seconds` | queue |" in METRICS.read_text()
    for name, found in scaled.items():
        assert found["spec"]["scaleTargetRef"] == {"name": name}
        assert "replicas" not in deployments[name]["spec"]  # which would undo what KEDA sets
        (trigger,) = found["spec"]["triggers"]
        queue = name.removeprefix("appa-")
        query = f'max(appa_queue_oldest_seconds{{queue="{queue}"}})'
        assert trigger["metadata"]["query"] == query
        assert queue in deployments[name]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert deployments["appa-sources"]["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(("values", "said"), [
    ({}, "redis.secret: name a secret"),
    ({**SMALLEST, "workers": {"sources": {"autoscaling": {"enabled": True}}}}, "never be two"),
    ({**SMALLEST, "gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host"),
    ({**SMALLEST, "monitoring": {"serviceMonitor": {"enabled": True}}}, "metrics:read"),
    ({**SMALLEST, "gatway": {}}, "gatway"),
    ({**SMALLEST, "gateway": {"replicas": "two"}}, "replicas"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused(values, said):
    assert said in answer(values)["error"]
