"""A parity folder of other sizes, with random weights and placeholders for the outputs.

Nothing in it is right; comparing it shows whether every family runs at its sizes.
"""

import json

import torch
from safetensors.torch import save_file

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig

CONFIG = {
    "ae": {
        "in_channels": 6,
        "lat_channels": 3,
        "shape": [13, 16],
        "resize": 4,
        "saturation": "tanh",
        "saturation_bound": 3.0,
        "noise_level": 0.0,
        "hid_channels": [6, 10],
        "hid_blocks": [1, 2],
        "kernel_size": 3,
        "stride": 2,
        "pixel_shuffle": True,
        "ffn_factor": 2,
        "patch_size": [2, 2],
        "periodic": False,
    },
    "ae_alt_shape": [8, 12],
    "backbone": {
        "in_channels": 3,
        "blanket_size": 4,
        "shape": [4, 6],
        "mod_features": 10,
        "hid_channels": 24,
        "hid_blocks": 2,
        "spatial": 3,
        "patch_size": [2, 2, 3],
        "window_size": None,
        "attention_heads": 3,
        "qk_norm": True,
        "rope": True,
        "ffn_factor": 2,
        "dropout": 0.0,
    },
    "backbone_alt_shape": [2, 3],
    "schedule": {"name": "loglinear", "sigma_min": 0.01, "sigma_max": 50.0},
    "trajectory": {
        "T": 8,
        "blanket_size": 4,
        "blanket_stride": 2,
        "start": "2021-12-31",
        "start_hour": 20,
        "dt_hours": 1,
    },
    "seeds": {},
}
ORBIT = {
    "orbital_altitude": 500,
    "inclination": 60,
    "initial_phase": 10,
    "observation_time": 3,
    "obs_freq": 6,
    "delay": 1,
}
STATE, STEPS = 3 * 4 * 6, 8
OBSERVED = 7


def write_folder(folder):
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"sizes": CONFIG, "orbits": [ORBIT]}))
    ae, vit = (
        Autoencoder(AutoencoderConfig(**CONFIG["ae"])),
        Backbone(BackboneConfig(**CONFIG["backbone"])),
    )
    save_file(ae.state_dict(), folder / "tiny_autoencoder.safetensors")
    save_file(vit.state_dict(), folder / "tiny_backbone.safetensors")
    inputs, outputs = _inputs(), _outputs()
    save_file(inputs | outputs | _single_outputs(), folder / "golden.safetensors")
    double = {k: v.double() if v.is_floating_point() else v for k, v in outputs.items()}
    double |= {f"gmres.{k}": torch.randn(2, 5, 5).double() for k in ("spd", "nonsym")}
    double |= {"gmres.b": torch.randn(2, 5).double(), "gmres.x0": torch.randn(2, 5).double()}
    double |= {f"gmres.spd.it2{x}": torch.zeros(2, 5).double() for x in ("", ".x0")}
    save_file(double, folder / "golden_f64.safetensors")


def _inputs():
    blanket, size = 4 * STATE, 13 * 16
    stations, channels = torch.tensor([3, 50, 77]), torch.tensor([1, 0, 1, 0, 0, 0])
    arrays = {
        "ae.x": torch.randn(2, size, 6),
        "ae.z": torch.randn(2, 4 * 6, 3),
        "ae_alt.x": torch.randn(1, 8 * 12, 6),
        "ae_alt.z": torch.randn(1, 2 * 5, 3),
        "vit.x": torch.randn(2, blanket),
        "vit.t": torch.randn(2),
        "vit.date": _dates(2, 4),
        "vit_alt.x": torch.randn(2, 4 * 3 * 2 * 3),
        "den.x0": torch.randn(1, blanket),
        "den.eps": torch.randn(1, blanket),
        "den.sigma": torch.tensor([0.1, 4.0]),
        "loss.denoiser.noise": torch.randn(1, 2, blanket),
        "lin.idx": torch.tensor([5, 9, 31, 200]),
        "lin.var_vec": torch.rand(4) + 0.1,
        "lin.y_noise": torch.randn(4),
        "lin.x0_b2": torch.randn(2, blanket),
        "lin.eps_b2": torch.randn(2, blanket),
        "lin.yn_b2": torch.randn(2, 4),
        "probe.v_x": torch.randn(1, blanket),
        "traj.x0": torch.randn(1, STEPS * STATE),
        "traj.eps": torch.randn(1, STEPS * STATE),
        "traj.x1_unit": torch.randn(1, STEPS * STATE),
        "traj.yn": torch.randn(500),
        "traj.fold_x": torch.randn(2, STEPS * 5),
        "traj.date": _dates(1, STEPS),
        "samp.x1_unit": torch.randn(1, blanket),
        "samp.ddpm.noise": torch.randn(3, 1, blanket),
        "samp.traj_pc_mmps.noise": torch.randn(4, 1, STEPS * STATE),
        "obs.latent_mean": torch.randn(3),
        "obs.latent_std": torch.rand(3) + 1,
        "obs.sat_cov_value": torch.tensor(0.3),
        "obs.sat_vars": 1 - channels.to(torch.uint8),
        "obs.stations_vars": channels.to(torch.uint8),
        "obs.stations_cov": torch.full((3,), 0.2),
        "obs.stations_idx": stations,
        "layer.ln.x": torch.randn(2, 5, 3, 4),
        "layer.sine.x": torch.randn(7),
        "sched.t": torch.linspace(0, 1, 9),
        "date.dates": _dates(1, 5)[0],
        "date.lon": torch.tensor([-20.0, 50.0]),
    }
    index = arrays["lin.idx"]
    arrays["lin.y.vector"] = arrays["den.x0"][0, index] + arrays["lin.var_vec"].sqrt()
    arrays["lin.y.scalar"] = arrays["den.x0"][0, index] + 0.3 * arrays["lin.y_noise"]
    arrays["lin.y_b2"] = arrays["lin.x0_b2"][:, index]
    for t in range(STEPS):
        arrays[f"obs.sat_idx.{t:02d}"] = torch.arange(2 + t)
    return arrays


def _outputs():
    blanket = torch.zeros(1, 4 * STATE)
    trajectory = torch.zeros(1, STEPS * STATE)
    arrays = {
        "ae.pad": torch.zeros(1, 2, 16, 24),
        "ae.encode": torch.zeros(2, 4 * 6, 3),
        "ae.decode": torch.zeros(2, 13 * 16, 6),
        "ae.enc_stage1": torch.zeros(1, 3, 4, 6),
        "ae.dec_stage0": torch.zeros(1, 6, 8, 12),
        "ae.dec_stage1": torch.zeros(1, 24, 8, 12),
        "ae.saturate.tanh": torch.zeros(2, 3, 4, 6),
        "ae_alt.encode": torch.zeros(1, 2 * 5, 3),
        "ae_alt.decode": torch.zeros(1, 8 * 12, 6),
        "vit.y": torch.zeros(2, 4 * STATE),
        "vit.in_proj": torch.zeros(2, 2, 2, 2, 24),
        "vit.pos_emb": torch.zeros(8, 24),
        "vit.block1": torch.zeros(2, 8, 24),
        "vit.date_cond": torch.zeros(2, 16),
        "vit_alt.y": torch.zeros(2, 4 * 3 * 2 * 3),
        "vit_noqk.y": torch.zeros(2, 4 * STATE),
        "den.out.1": blanket,
        "den.out_b2": torch.zeros(2, 4 * STATE),
        "loss.denoiser": torch.zeros(1),
        "sched.loglogit.0.5.20.0": torch.zeros(9, 1),
        "piece.At_y": blanket,
        "mmps.lin.scalar.tw0.it1.s2.0": blanket,
        "mmps.lin.b2": torch.zeros(2, 4 * STATE),
        "mmps.dec.tw1.it2.s0.5": blanket,
        "sda.s3.0": blanket,
        "traj.unfold.4.2": torch.zeros(6, 20),
        "traj.fold.average.4.2": torch.zeros(2, STEPS * 5),
        "traj.unfold_date.4.2": torch.zeros(6, 4, 4, dtype=torch.int64),
        "traj.den.causal.s0.7": trajectory,
        "traj.den.average.s0.7": trajectory,
        "traj.mmps.s1.5": trajectory,
        "samp.ddpm": blanket,
        "samp.lms": blanket,
        "samp.ddim_mmps": blanket,
        "samp.traj_pc_mmps": trajectory,
    }
    for n in range(3):
        arrays[f"obs.A_clean.{n}"] = torch.zeros(_observed(n))
    return {k: v.clone() for k, v in arrays.items()}


def _single_outputs():
    arrays = {
        "layer.ln.y": torch.zeros(2, 5, 3, 4),
        "layer.sine.y": torch.zeros(7, 6),
        "layer.rope.theta": torch.zeros(5, 2),
        "date.local_time": torch.zeros(5, 2, 2),
        "date.year_progress": torch.zeros(5, 2),
        "orbit.0": torch.zeros(3, 6, 2),
        "orbit.coarse.7x9.0.fov12": torch.ones(3, 7, 9, dtype=torch.uint8),
        "orbit.coarse.7x9.0.dt3": torch.ones(1, 7, 9, dtype=torch.uint8),
        "masks.variable_1_2": torch.zeros(6, dtype=torch.uint8),
        "gmres.nonsym.f32.it2": torch.zeros(2, 5),
    }
    for name in ("q", "k", "q_out", "k_out"):
        arrays[f"layer.rope.{name}"] = torch.zeros(2, 5, 4)
    for n in range(3):
        arrays[f"obs.y.{n}"] = torch.zeros(_observed(n))
        arrays[f"obs.cov.{n}"] = torch.full((_observed(n),), 0.2)
    return arrays


def _observed(n):
    """Values of blanket n: 3 stations of 2 channels, 2 + t satellite points of 4 channels."""
    steps = range(2 * n, min(2 * n + 4, OBSERVED))
    return sum(3 * 2 + (2 + t) * 4 for t in steps)


def _dates(batch, length):
    hours = torch.arange(length)
    rows = torch.stack([torch.full_like(hours, v) for v in (2024, 2, 29)] + [hours], dim=-1)
    return rows.expand(batch, -1, -1).clone()
