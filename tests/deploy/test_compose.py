"""The containers run what `appa up` runs: same commands, same settings of the broker."""

import ipaddress
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from deploy.local import BROKER_OPTIONS, PROCESSES, broker_command

REPOSITORY = Path(__file__).resolve().parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")


OBSERVERS = ("prometheus", "grafana")
OTHERS = (*OBSERVERS, "proxy")


@pytest.fixture(scope="module")
def everything() -> dict:
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def compose(everything) -> dict:
    """The service itself: without those that observe it, or stand before it."""
    services = {n: s for n, s in everything["services"].items() if n not in OTHERS}
    return everything | {"services": services}


def options(command: list[str]) -> dict[str, str]:
    """`--name value` pairs of a command."""
    return {k[2:]: v for k, v in zip(command, command[1:], strict=False) if k.startswith("--")}


def test_services_run_the_commands_of_the_local_stack(compose):
    services = {n: tuple(s["command"]) for n, s in compose["services"].items() if n != "redis"}
    cpu = services.pop("model-cpu")
    assert services == PROCESSES
    assert cpu == PROCESSES["model"]


def test_the_broker_is_set_up_alike(compose, tmp_path):
    container = options(compose["services"]["redis"]["command"])
    local = options(list(broker_command(tmp_path, tmp_path / "s")))
    assert container.pop("requirepass").startswith("${APPA_REDIS_PASSWORD:?")
    assert container.pop("maxmemory") == "${APPA_REDIS_MAXMEMORY:-1280mb}"
    assert container == BROKER_OPTIONS
    assert {name: local[name] for name in BROKER_OPTIONS} == BROKER_OPTIONS
    assert container["appendonly"] == "yes"
    assert container["maxmemory-policy"] == "noeviction"


def test_profiles_choose_one_model_worker(compose):
    services = compose["services"]
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert profiles.pop("model") == ["gpu"]
    assert profiles.pop("model-cpu") == ["cpu"]
    assert not any(profiles.values())
    devices = services["model"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert services["model-cpu"]["environment"]["APPA_DEVICE"] == "cpu"


def test_observers_are_a_profile_and_see_files_that_exist(everything):
    for name in OBSERVERS:
        service = everything["services"][name]
        assert service["profiles"] == ["observability"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in everything["volumes"] or (REPOSITORY / source).is_dir()


def test_every_service_reaches_the_same_broker_and_data(compose):
    for name, service in compose["services"].items():
        if name == "redis":
            continue
        password = "${APPA_REDIS_PASSWORD:?copy .env.example to .env and set it}"
        assert service["environment"]["APPA_REDIS_URL"] == f"redis://:{password}@redis:6379/0"
        assert service["environment"]["APPA_DATA_DIR"] == "/data"
        assert "data:/data" in service["volumes"]
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_settings_in_the_containers_are_known_ones(compose):
    from opentelemetry.sdk import environment_variables

    from service.settings import GatewaySettings
    from worker.settings import WorkerSettings

    known = {f"APPA_{n.upper()}" for n in {**WorkerSettings.model_fields}}
    known |= {f"APPA_{n.upper()}" for n in GatewaySettings.model_fields}
    known |= set(vars(environment_variables)) & {"OTEL_EXPORTER_OTLP_ENDPOINT"}  # of the SDK
    known |= {  # of the AWS command line, and of all clients of buckets
        "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    }  # fmt: skip
    for name, service in compose["services"].items():
        if name != "redis":
            assert set(service["environment"]) <= known


def test_no_container_is_root_and_each_is_probed_limited_and_rotates_its_log(compose):
    for name, service in compose["services"].items():
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}
        assert service["mem_limit"]
        assert service["healthcheck"]["test"]
        if name == "redis":
            continue
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        if name != "gateway":
            assert service["healthcheck"]["test"] == [
                "CMD",
                "appa",
                "probe",
                *service["command"][2:],
            ]


def test_what_may_be_set_is_in_the_example_and_the_password_must_be(everything):
    text = (REPOSITORY / "docker-compose.yml").read_text()
    example = (REPOSITORY / ".env.example").read_text()
    given = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)[:}]", text))
    assert set(given) == used
    assert [name for name, value in given.items() if not value] == [
        "APPA_REDIS_PASSWORD", "APPA_MODELS", "APPA_RESULTS_URL", "APPA_UPLOADS_URL",
        "APPA_OBSERVATIONS_URL", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ]  # fmt: skip
    for name, value in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        assert given[name] == value, name


def test_the_proxy_is_the_one_that_the_gateway_trusts(everything):
    services = everything["services"]
    address = services["proxy"]["networks"]["default"]["ipv4_address"]
    assert services["gateway"]["environment"]["APPA_TRUSTED_PROXIES"] == address
    (network,) = everything["networks"]["default"]["ipam"]["config"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network(network["subnet"])
    caddy = (REPOSITORY / "deploy" / "caddy" / "Caddyfile").read_text()
    port = services["gateway"]["environment"]["APPA_PORT"]
    assert f"reverse_proxy gateway:{port} " in caddy
    assert services["gateway"]["ports"] == ["${APPA_BIND:-127.0.0.1}:8000:8000"]


@pytest.mark.parametrize("file", ["Dockerfile.gpu", "deploy/Dockerfile.gateway"])
def test_images_copy_files_that_exist_and_start_a_known_part(file):
    text = (REPOSITORY / file).read_text()
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY ((?!--from).+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (REPOSITORY / source).exists(), source
            assert f"!{source}" in ignored
    command = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    assert tuple(yaml.safe_load(command[0])) in PROCESSES.values()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert len(re.findall(r"^FROM \$\{PYTHON_IMAGE\}", text, re.MULTILINE)) == 2  # built, run
    done = subprocess.run([HADOLINT, REPOSITORY / file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_of_the_gateway_has_no_torch():
    """Nor the ones of ingest: of all extras the one `model` alone brings it."""
    text = (REPOSITORY / "deploy" / "Dockerfile.gateway").read_text()
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    installed = [line.split(",") for line in re.findall(r"'\.\[([\w,]+)\]'", text)]
    assert installed == [["ingest", "objects", "traces"], ["data", "objects", "traces"]]
    needs = [need for names in installed for extra in names for need in extras[extra]]
    assert not any("torch" in need or "model" in need for need in needs)
