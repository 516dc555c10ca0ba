"""A job on the terminal: its place in the queue, then a bar of diffusion steps, then its end."""

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from deploy.gateway_access import err, out, print_json
from service.client import AppaClient, JobEvent
from worker.jobs.job import JobRecord, JobState

__all__ = ["follow_on_terminal"]


class JobBar:
    """One bar."""

    def __init__(self, progress: Progress, job_id: str) -> None:
        self.progress = progress
        self.task: TaskID = progress.add_task(job_id, total=None, text="")

    def show(self, event: JobEvent) -> None:
        """Moves the bar to what `event` tells."""
        told = event.progress
        text = str(event.data.get("state", ""))
        if event.type == "queue":
            text = f"queued, {event.data['queue_position']} ahead"
        elif told is not None:
            eta = f", {told.eta_seconds:.0f} s left" if told.eta_seconds is not None else ""
            text = f"{told.phase.value}{eta}" if event.type == "progress" else text
            total = told.steps or None
            self.progress.update(self.task, completed=told.step, total=total)
        self.progress.update(self.task, text=text)


def follow_on_terminal(client: AppaClient, job_id: str, *, as_json: bool) -> JobRecord:
    """Shows a job until it is done; ends the command with status 1 if it did not succeed."""
    if as_json:
        for event in client.watch(job_id):
            print_json({"event": event.type, "id": event.id, "data": event.data})
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TextColumn("{task.fields[text]}"), Elapsed(), console=err) as bars:
            bar = JobBar(bars, job_id)
            for event in client.watch(job_id):
                bar.show(event)
    job = client.job(job_id)
    if not as_json:
        color = "green" if job.state is JobState.SUCCEEDED else "red"
        text = f"[{color}]{job.state.value}[/] {job.id} → analysis {job.analysis_id}"
        out.print(text, soft_wrap=True)
    if job.state is not JobState.SUCCEEDED:
        if job.error and not as_json:
            err.print(f"{job.error.code}: {job.error.message}", markup=False)
        raise typer.Exit(1)
    return job
