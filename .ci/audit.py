"""Look for secrets among the files of the repository, and for advisories against its packages.

`make audit` runs it: detect-secrets over all files that git knows, pip-audit over the pinned versions in
`constraints.txt`, against the advisories of OSV (or `PIP_AUDIT_OSV_URL`). Where that service cannot be
reached nothing is known about the packages: this is said, and is no failure. All else that is found is.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

OSV = "https://api.osv.dev/v1/query"
GUESSES = (
    "Base64HighEntropyString",
    "HexHighEntropyString",
    "KeywordDetector",
    "BasicAuthDetector",
    "IPPublicDetector",
)
"""Detectors that mistake hashes, field names, and `user:password@` of examples for secrets."""


def find_secrets(folder: Path) -> bool:
    """Print what looks like a secret in the files that git knows; return whether there is any."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607 (git of the path is meant)
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        print(f"secrets: skipped, {folder} is no checkout of git")
        return False
    names = [name for name in listed.stdout.split("\0") if _is_text(folder / name)]
    options = [part for name in GUESSES for part in ("--disable-plugin", name)]
    hook = [sys.executable, "-m", "detect_secrets.pre_commit_hook", "--no-verify", *options]
    found = subprocess.run([*hook, *names], cwd=folder).returncode != 0
    print(f"secrets: {'see above' if found else 'none'} in {len(names)} files")
    return found


def _is_text(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"\0" not in file.read(8000)  # as git tells


def unreachable(address: str) -> str:
    """Return why the advisories cannot be had; empty if they can."""
    about = {"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "0"}
    try:
        answer = httpx.post(address, json=about, timeout=15)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return "" if answer.status_code == 200 else f"it answered with {answer.status_code}"


def find_advisories(pinned: Path) -> bool:
    """Print what is known against pinned packages; return whether there is anything."""
    address = os.environ.get("PIP_AUDIT_OSV_URL", OSV)
    why = unreachable(address)
    if not why:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned)]
            command += ["--no-deps", "--disable-pip", "--progress-spinner", "off"]
            command += ["--vulnerability-service", "osv", "--osv-url", address]
            code = subprocess.run([*command, "--cache-dir", cache]).returncode
        # It ends alike for advisories and for a service that was lost meanwhile.
        why = unreachable(address) if code else ""
        if not why:
            return code != 0
    print(f"advisories: skipped, {address} cannot be reached ({why})")
    return False


def main(folder: Path) -> int:
    """Return the exit status: 1 if anything was found."""
    found = [find_secrets(folder), find_advisories(folder / "constraints.txt")]
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
