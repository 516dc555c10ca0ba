"""Files appear whole or not at all; YAML that does not fit is refused with a typed error."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from model.domain import files
from model.domain.errors import CheckpointError, ConfigurationError


class Policy(BaseModel):
    """A small policy."""

    model_config = ConfigDict(extra="forbid")
    days: int = 7


def test_an_atomic_write_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_atomic(path, "first")
    files.write_atomic(path, b"second \xff")
    assert path.read_bytes() == b"second \xff"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_text_is_written_as_utf_8(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a", "Å ≤ 1")
    assert (tmp_path / "a").read_bytes() == "Å ≤ 1".encode()


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_atomic(path, "old")
    with pytest.raises(ZeroDivisionError), files.open_atomic(path) as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_exclusive_write_refuses_a_name_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_atomic(path, "first", exclusive=True)
    with pytest.raises(FileExistsError):
        files.write_atomic(path, "second", exclusive=True)
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_secret_file_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with files.open_atomic(path, mode=0o600) as stream:
        (partial,) = tmp_path.iterdir()
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
        stream.write(b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_content_and_names_are_flushed_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    flush = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    files.write_atomic(tmp_path / "a.nc", "x")
    content, folder = synced
    assert Path(content).parent == tmp_path and content.endswith("-a.nc")
    assert Path(folder) == tmp_path


def test_the_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert files.file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_policy_is_read_and_an_empty_file_takes_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("days: 3\n")
    assert files.read_yaml_model(path, Policy, "a policy") == Policy(days=3)
    path.write_text("# nothing but a comment\n")
    assert files.read_yaml_model(path, Policy, "a policy") == Policy()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"days: [", "Expected readable YAML"),
        (b"\xff\xfe\x00", "Expected readable YAML"),
        (b"- 1\n- 2\n", "Expected a mapping in .*; got list"),
        (b"days: soon\n", "Expected a policy in .*policy.yaml; days: Input should be .* See docs"),
        (b"days: 3\ndays: 4\n", "Expected readable YAML in .*the names 'days' repeat"),
        (b"months: 1\n", "months: Extra inputs are not permitted"),
    ],
)
def test_yaml_that_does_not_fit_raises_the_typed_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        files.read_yaml_model(path, Policy, "a policy", hint="See docs.", error=CheckpointError)
    assert caught.value.context["file"] == str(path)


def test_a_mapping_may_override_what_it_merges(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "base: &base {a: 1, b: 2}\nown: &own {<<: *base, b: 3}\nlast: {<<: *own, a: 4}\n"
    )
    assert files.read_yaml(path)["last"] == {"a": 4, "b": 3}


def test_an_absent_file_raises_the_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        files.read_yaml(tmp_path / "absent.yaml")
