"""Everything in a folder of recorded outputs, compared array by array."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.parity import (
    guidance,
    layers,
    networks,
    observations,
    orbits,
    samplers,
    solve,
    trajectory,
)
from model.checkpoints.parity.case import ParityCase
from model.checkpoints.parity.compare import Outcome, compare
from model.domain.errors import ConfigurationError

__all__ = ["Family", "FAMILIES", "compare_folder"]

Produce = Callable[[ParityCase], Iterator[tuple[str, Tensor] | Outcome]]


@dataclass(frozen=True)
class Family:
    """Arrays that one function computes.

    Attributes:
        pattern: Regular expression of their names.
        produce: Gives names and values, or finished outcomes.
    """

    pattern: str
    produce: Produce


FAMILIES = (
    Family(r"layer\..*", layers.layers),
    Family(r"date\..*", layers.dates),
    Family(r"sched\..*", layers.schedules),
    Family(r"masks\..*", layers.masks),
    Family(r"ae\.saturate\..*", networks.saturations),
    Family(r"ae\..*", networks.autoencoder),
    Family(r"ae_alt\..*", networks.alternative_autoencoder),
    Family(r"vit\..*", networks.backbone),
    Family(r"vit_alt\..*", networks.alternative_backbone),
    Family(r"vit_noqk\..*", networks.unnormalised_backbone),
    Family(r"den\..*", networks.denoiser),
    Family(r"loss\..*", networks.loss),
    Family(r"gmres\..*", solve.solve),
    Family(r"obs\.A_clean\..*", observations.observations),
    Family(r"(obs\.(y|cov)\..*|lin\.y(\..*|_b2))", observations.derived_inputs),
    Family(r"piece\..*", guidance.pieces),
    Family(r"mmps\.lin\..*", guidance.linear_mmps),
    Family(r"mmps\.dec\..*", guidance.decoded_mmps),
    Family(r"sda\..*", guidance.sda),
    Family(r"traj\.date", trajectory.dates),
    Family(r"traj\.(un)?fold.*", trajectory.folds),
    Family(r"traj\.den\..*", trajectory.trajectory_denoisers),
    Family(r"traj\.mmps\..*", trajectory.guided),
    Family(r"samp\.traj_\w+_mmps", samplers.guided_trajectory),
    Family(r"samp\.traj_\w+", samplers.trajectory_sampler),
    Family(r"samp\.\w+_mmps", samplers.guided_samplers),
    Family(r"samp\..*", samplers.samplers),
    Family(r"orbit\.\d+", orbits.tracks),
    Family(r"orbit\..*", orbits.fields_of_view),
)

NOT_CARRIED = {
    r"vit_window\..*": "local attention",
    r"w2c\..*": "W2C guidance",
    r"ae_periodic\..*": "convolutions periodic across the poles",
}

INPUTS = re.compile(
    r"ae(_alt)?\.[xz]|vit(_alt)?\.(x|t|date)|den\.(x0|eps|sigma)|date\.(dates|lon)"
    r"|layer\.(ln\.x|rope\.(q|k|theta)|sine\.x)|sched\.t|gmres\.(b|x0|spd|nonsym)"
    r"|lin\.(idx|var_vec|y_noise|yn_b2|x0_b2|eps_b2)|probe\.v_x"
    r"|obs\.(latent_(mean|std)|sat_(cov_value|idx\.\d+|vars)|stations_(cov|idx|vars))"
    r"|traj\.(x0|eps|x1_unit|yn|fold_x)|samp\.x1_unit|.*\.noise"
)
"""What is given to the computations; anything else in a folder must be matched."""


def compare_folder(folder: Path, runs: Iterable[str] = ("float32", "float64")) -> list[Outcome]:
    """Compares everything recorded in a folder.

    Arguments:
        folder: See `model.checkpoints.parity.case`.
        runs: Which of the recorded runs.

    Returns:
        One outcome for each array of each run, in the order of names.

    Raises:
        CheckpointError: If the folder cannot be read.
    """
    outcomes: list[Outcome] = []
    for run in runs:
        case = ParityCase(folder, getattr(torch, run))
        found = {o.name: o for o in _known_in_advance(case)}
        with torch.no_grad():
            for family in FAMILIES:
                left = [
                    n for n in case.outputs if n not in found and re.fullmatch(family.pattern, n)
                ]
                found |= {o.name: o for o in _attempt(case, family, left)}
        for name in case.outputs.keys() - found.keys():
            found[name] = Outcome(name, case.label, "missed", note="unknown name")
        outcomes += [found[name] for name in sorted(found)]
    return outcomes


def _known_in_advance(case: ParityCase) -> Iterator[Outcome]:
    for name in case.outputs:
        for pattern, what in NOT_CARRIED.items():
            if re.fullmatch(pattern, name):
                yield Outcome(name, case.label, "not carried", note=what)
        if INPUTS.fullmatch(name):
            yield Outcome(name, case.label, "input")


def _attempt(case: ParityCase, family: Family, names: list[str]) -> Iterator[Outcome]:
    """Outcomes of the recorded arrays `names`; what breaks half-way leaves the rest missed."""
    if not names:
        return
    open_names, why = set(names), "nothing was computed for it"
    not_carried = False
    try:
        for produced in family.produce(case):
            name = produced.name if isinstance(produced, Outcome) else produced[0]
            if name not in open_names:
                continue
            open_names.remove(name)
            yield produced if isinstance(produced, Outcome) else compare(case, *produced)
    except ConfigurationError as error:
        why, not_carried = error.message, "not carried" in error.message
    except Exception as error:  # a comparison reports whatever goes wrong and goes on
        why = f"{type(error).__name__}: {error}"
    for name in sorted(open_names):
        yield Outcome(name, case.label, "not carried" if not_carried else "missed", note=why)
