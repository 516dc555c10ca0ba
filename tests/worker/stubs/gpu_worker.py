"""A worker whose work is to count steps: everything but the model or the decoder is the real thing.

The pace comes from `APPA_STUB_STEPS` and `APPA_STUB_STEP_SECONDS`; a file `pause-<phase>` in the
data folder holds the work at that phase until the file is gone, a file `fault-<phase>` makes it
fail with a storage error. With `APPA_STUB_QUEUE=ingest` it takes uploads (phase `ingest`);
`APPA_STUB_DEAF=1` makes these ignore Celery's soft time limit.
"""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

from model.domain.errors import StorageError
from worker import process
from worker.contract.batches import IngestSummary
from worker.contract.jobs import Phase
from worker.contract.queues import INGEST_BATCH, RUN_ASSIMILATION
from worker.lease import ProgressReporter
from worker.results.manifest import AnalysisManifest, describe_file
from worker.results.publication import publish, staging_folder, write_manifest
from worker.runtime import open_runtime
from worker.settings import WorkerSettings
from worker.tasks.attempt import attempt, known_version

STEPS = int(os.environ.get("APPA_STUB_STEPS", "4"))
PAUSE = float(os.environ.get("APPA_STUB_STEP_SECONDS", "0.01"))
QUEUE = os.environ.get("APPA_STUB_QUEUE", "gpu")
DEAF = os.environ.get("APPA_STUB_DEAF") == "1"


def work(job, runtime, progress, folder):
    for phase in (Phase.GATHERING, Phase.BACKGROUND, Phase.SAMPLING, Phase.WRITING):
        progress.phase(phase)
        if (runtime.layout.root / f"fault-{phase.value}").exists():
            raise StorageError("torn file")
        while (runtime.layout.root / f"pause-{phase.value}").exists():
            progress.check()
            time.sleep(0.01)
        for step in range(STEPS if phase is Phase.SAMPLING else 0):
            progress(step, STEPS)
            time.sleep(PAUSE)
    path = folder / "result.txt"
    path.write_text(f"attempt {job.attempts}")
    manifest = AnalysisManifest(
        id=job.analysis_id, job_id=job.id, kind=job.kind, valid_time=datetime.now(UTC),
        times=[], files=[describe_file(path)], members=1, spec=job.spec,
    )  # fmt: skip
    write_manifest(folder, manifest)


@shared_task(name=RUN_ASSIMILATION, bind=True)
def run(self, job_id: str, version: int) -> None:
    runtime = self.app.runtime
    store = runtime.stores.jobs
    if not known_version(store, job_id, version):
        return

    def body(job, lease):
        progress = ProgressReporter(store, lease, runtime.check_stopping, 0.0)
        with staging_folder(job, runtime.layout) as folder:
            work(job, runtime, progress, folder)
            publish(job, store, runtime.layout, folder, progress)
        store.succeed(job.id, job.token, progress.progress)

    attempt(self, runtime, store, job_id, body)


@shared_task(name=INGEST_BATCH, bind=True)
def take_in(self, batch_id: str, version: int) -> None:
    runtime = self.app.runtime
    store = runtime.stores.batches

    def body(batch, lease):
        while (runtime.layout.root / "pause-ingest").exists():
            try:
                time.sleep(0.01)
            except SoftTimeLimitExceeded:
                if not DEAF:
                    raise
        store.finish(batch.id, batch.token, IngestSummary())

    attempt(self, runtime, store, batch_id, body)


class StubLife(process.WorkerLife):
    def prepare(self):
        self.runtime = open_runtime(self.settings, self.queues, self.name, self.app)
        self.runtime.start_reporting()
        self.app.runtime = self.runtime


if __name__ == "__main__":
    settings = WorkerSettings()
    process.configure_logs(settings)
    name = f"stub.{os.getpid()}@host"
    process.HARD_LIMIT_GRACE = 1
    app = process.create_app(settings, [QUEUE])
    app.conf.include = []
    life = StubLife(app, settings, [QUEUE], name)
    life.prepare()
    life.connect()
    app.worker_main(process.worker_arguments([QUEUE], name))
