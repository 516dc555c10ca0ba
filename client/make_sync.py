"""Generate `appa_client/_sync` from `appa_client/_async` (unasync), formatted with ruff.

usage: python client/make_sync.py [--check]

With --check nothing is written; the exit status is 1 if a generated file is out of date.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).resolve().parent / "appa_client"
HEADER = "# Generated from appa_client/_async by `make client`. Do not edit.\n"
TOKENS = {
    "AsyncAppaClient": "AppaClient",
    "AsyncClient": "Client",
    "aclose": "close",
    "aclosing": "closing",
    "aconnect_sse": "connect_sse",
    "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
    "aread": "read",
    "async_blocks": "blocks",
    "asyncio": "time",  # of asyncio only `sleep` is used
}
"""Replacements of asynchronous by synchronous names, in addition to those of unasync."""

INIT = '"""The client without asyncio, generated from `appa_client._async`."""\n'


def generate(folder: Path) -> dict[str, str]:
    """Return the generated modules by file name; `folder` must be empty and is written to."""
    source = folder / "_async"
    shutil.copytree(PACKAGE / "_async", source, ignore=shutil.ignore_patterns("__pycache__"))
    rule = unasync.Rule("/_async/", "/_sync/", additional_replacements=TOKENS)
    modules = [path for path in sorted(source.glob("*.py")) if path.name != "__init__.py"]
    unasync.unasync_files([str(path) for path in modules], [rule])
    target = folder / "_sync"
    for path in target.glob("*.py"):
        path.write_text(HEADER + path.read_text())
    (target / "__init__.py").write_text(INIT)
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--quiet", "--config", str(PACKAGE.parents[1] / "pyproject.toml")]
    first_party = ["--config", 'lint.isort.known-first-party=["appa_client"]']
    subprocess.run(
        [*ruff, "check", "--fix", "--select", "I", *settings, *first_party, str(target)], check=True
    )
    subprocess.run([*ruff, "format", *settings, str(target)], check=True)
    return {path.name: path.read_text() for path in sorted(target.glob("*.py"))}


def main() -> int:
    """Write the generated modules, or with --check compare them."""
    with tempfile.TemporaryDirectory() as folder:
        modules = generate(Path(folder))
    status = 0
    for name, text in modules.items():
        path = PACKAGE / "_sync" / name
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in sys.argv:
            print(f"{path} is out of date; run: make client")
            status = 1
        else:
            path.write_text(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
