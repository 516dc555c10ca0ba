"""Compare everything in a folder of recorded outputs of the public code, array by array."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lab.parity import components, guidance, trajectories
from lab.parity.case import Comparison, ParityCase, compare
from model.domain.errors import ConfigurationError

__all__ = ["FAMILIES", "OutputFamily", "compare_folder"]

Produce = Callable[[ParityCase], Iterator[tuple[str, Tensor] | Comparison]]


@dataclass(frozen=True)
class OutputFamily:
    """Arrays that one function computes.

    Attributes:
        pattern: Regular expression of their names.
        produce: Gives names and values, or finished outcomes.
    """

    pattern: str
    produce: Produce


FAMILIES = (
    OutputFamily(r"layer\..*", components.layers),
    OutputFamily(r"date\..*", components.dates),
    OutputFamily(r"sched\..*", components.schedules),
    OutputFamily(r"masks\..*", components.masks),
    OutputFamily(r"ae\.saturate\..*", components.saturations),
    OutputFamily(r"ae\..*", components.autoencoder),
    OutputFamily(r"ae_alt\..*", components.alternative_autoencoder),
    OutputFamily(r"vit\..*", components.backbone),
    OutputFamily(r"vit_alt\..*", components.alternative_backbone),
    OutputFamily(r"vit_noqk\..*", components.unnormalised_backbone),
    OutputFamily(r"den\..*", components.denoiser),
    OutputFamily(r"loss\..*", components.loss),
    OutputFamily(r"gmres\..*", components.solve),
    OutputFamily(r"obs\.A_clean\..*", guidance.observations),
    OutputFamily(r"(obs\.(y|cov)\..*|lin\.y(\..*|_b2))", guidance.derived_inputs),
    OutputFamily(r"piece\..*", guidance.pieces),
    OutputFamily(r"mmps\.lin\..*", guidance.linear_mmps),
    OutputFamily(r"mmps\.dec\..*", guidance.decoded_mmps),
    OutputFamily(r"sda\..*", guidance.sda),
    OutputFamily(r"traj\.date", trajectories.trajectory_dates),
    OutputFamily(r"traj\.(un)?fold.*", trajectories.folds),
    OutputFamily(r"traj\.den\..*", trajectories.trajectory_denoisers),
    OutputFamily(r"traj\.mmps\..*", trajectories.guided),
    OutputFamily(r"samp\.traj_\w+_mmps", trajectories.guided_trajectory),
    OutputFamily(r"samp\.traj_\w+", trajectories.trajectory_sampler),
    OutputFamily(r"samp\.\w+_mmps", trajectories.guided_samplers),
    OutputFamily(r"samp\..*", trajectories.samplers),
    OutputFamily(r"orbit\.\d+", components.tracks),
    OutputFamily(r"orbit\..*", components.fields_of_view),
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


def compare_folder(folder: Path, runs: Iterable[str] = ("float32", "float64")) -> list[Comparison]:
    """Compare everything recorded in a folder.

    Arguments:
        folder: See `model.checkpoints.parity.case`.
        runs: Which of the recorded runs.

    Returns:
        One outcome for each array of each run, in the order of names.

    Raises:
        CheckpointError: If the folder cannot be read.
    """
    outcomes: list[Comparison] = []
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
            found[name] = Comparison(name, case.label, "missed", note="unknown name")
        outcomes += [found[name] for name in sorted(found)]
    return outcomes


def _known_in_advance(case: ParityCase) -> Iterator[Comparison]:
    for name in case.outputs:
        for pattern, what in NOT_CARRIED.items():
            if re.fullmatch(pattern, name):
                yield Comparison(name, case.label, "not carried", note=what)
        if INPUTS.fullmatch(name):
            yield Comparison(name, case.label, "input")


def _attempt(case: ParityCase, family: OutputFamily, names: list[str]) -> Iterator[Comparison]:
    """Yield outcomes of the recorded arrays `names`; what breaks half-way leaves the rest missed."""
    if not names:
        return
    open_names, why = set(names), "nothing was computed for it"
    not_carried = False
    try:
        for produced in family.produce(case):
            name = produced.name if isinstance(produced, Comparison) else produced[0]
            if name not in open_names:
                continue
            open_names.remove(name)
            yield produced if isinstance(produced, Comparison) else compare(case, *produced)
    except ConfigurationError as error:
        why, not_carried = error.message, "not carried" in error.message
    except Exception as error:  # a comparison reports whatever goes wrong and goes on
        why = f"{type(error).__name__}: {error}"
    for name in sorted(open_names):
        yield Comparison(name, case.label, "not carried" if not_carried else "missed", note=why)
