"""`python -m benchmarks`: runs every table that needs no arguments, one after another."""

import subprocess
import sys

TABLES = (
    "guidance_speed",
    "denoiser_flops",
    "sampler_skill",
    "decode_speed",
    "store_speed",
    "gateway_load",
    "viewers",
    "ingest_rate",
)


def main() -> int:
    """Runs the tables; returns how many failed."""
    failed = 0
    for name in TABLES:
        print(f"== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
