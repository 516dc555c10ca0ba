"""The containers run what `appa up` runs: same commands, same settings of the broker."""

import re
from pathlib import Path

import pytest
import yaml

from deploy.local import BROKER_OPTIONS, PROCESSES, broker_command

REPOSITORY = Path(__file__).resolve().parents[2]


OBSERVERS = ("prometheus", "grafana")


@pytest.fixture(scope="module")
def everything() -> dict:
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def compose(everything) -> dict:
    """The service itself: without those that observe it."""
    services = {n: s for n, s in everything["services"].items() if n not in OBSERVERS}
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
        assert service["environment"]["APPA_REDIS_URL"] == "redis://redis:6379/0"
        assert service["environment"]["APPA_DATA_DIR"] == "/data"
        assert service["volumes"] == ["data:/data"]
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_settings_in_the_containers_are_known_ones(compose):
    from service.settings import GatewaySettings
    from worker.settings import WorkerSettings

    known = {f"APPA_{n.upper()}" for n in {**WorkerSettings.model_fields}}
    known |= {f"APPA_{n.upper()}" for n in GatewaySettings.model_fields}
    for service in compose["services"].values():
        assert set(service.get("environment", {})) <= known


@pytest.mark.parametrize("file", ["Dockerfile.gpu", "deploy/Dockerfile.gateway"])
def test_images_copy_files_that_exist_and_start_a_known_part(file):
    text = (REPOSITORY / file).read_text()
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (REPOSITORY / source).exists(), source
    command = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    assert tuple(yaml.safe_load(command[0])) in PROCESSES.values()
    assert re.search(r"^USER appa$", text, re.MULTILINE)
