"""What a model worker reports that it can do; imports torch, unlike `capabilities`."""

import torch

from worker.jobs.workers import WorkerReport
from worker.outputs.registry import OUTPUTS
from worker.warm_model import WarmModels

__all__ = ["describe_models"]


def describe_models(models: WarmModels, report: WorkerReport) -> None:
    """The models, the device and the output formats of a model worker."""
    name = str(models.device)
    if models.device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(models.device)})"
    report.device = name
    report.capabilities.models = [model.info for model in models.models]
    for entry in OUTPUTS.values():
        entry.load()  # imported now, not while the first result waits
    report.capabilities.formats = {key: entry.description for key, entry in OUTPUTS.items()}
