"""What an installation keeps is for its user alone: uploads, keys, and the broker's files."""

import os
import stat
from pathlib import Path

import httpx
from gateway_process import StartGateway

from deploy.supervisor import Process, Supervisor
from worker.contract.layout import Layout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_upload_is_for_this_user_alone(start_gateway: StartGateway, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        gateway = start_gateway(tmp_path / "new")
    finally:
        os.umask(before)
    batch = httpx.post(f"{gateway.url}/v1/observations", content=b"BUFR" + bytes(99)).json()
    content = gateway.layout.raw_file(batch["id"])
    assert (mode(gateway.layout.root), mode(content), mode(content.parent)) == (0o700, 0o600, 0o700)


def test_folders_of_an_older_installation_are_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    layout = Layout(tmp_path)
    for folder in (layout.broker, layout.raw, layout.logs, layout.tmp, layout.analyses):
        folder.mkdir()
        folder.chmod(0o755)
    layout.create()
    closed = {mode(f) for f in (layout.broker, layout.raw, layout.logs, layout.tmp)}
    assert closed == {0o700}
    assert (mode(layout.root), mode(layout.analyses)) == (0o755, 0o755)  # whose readers are known


def test_parts_of_a_stack_write_for_this_user_alone(tmp_path: Path) -> None:
    part = Process("writer", ("/bin/sh", "-c", f"echo a > {tmp_path / 'file'}"))
    supervisor = Supervisor([part], {}, lambda name, line: None)
    supervisor.start_all()
    supervisor.children["writer"].process.wait(30)
    supervisor.stop()
    assert mode(tmp_path / "file") == 0o600
