"""Nothing stops all requests at once: what the gateway has loaded is not looked over again."""

import os
import subprocess
import sys

SERVE = """
import gc, sys
import service.app
from service.settings import GatewaySettings

def run(app, **options):
    served = gc.get_freeze_count()
    app.state.gateway.data_sets.library
    print(served, gc.get_freeze_count() - served, len(gc.get_objects()))

service.app.uvicorn.run = run
service.app.serve(GatewaySettings())
"""


def test_a_full_collection_passes_over_what_is_loaded(tmp_path):
    environment = {"APPA_DATA_DIR": str(tmp_path), "APPA_REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [sys.executable, "-c", SERVE],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    served, data_sets, watched = map(int, done.stdout.split())
    assert served > 100_000
    assert data_sets > 10_000  # xarray and what it imports, at their first use
    assert watched < 10_000
