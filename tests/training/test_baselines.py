"""Every preset of configs/baselines/ over the demo: trains, is evaluated, samples, exports and loads again."""

import math

import pytest
import torch
import yaml
from conftest import ROOT, fork
from models import DIGITS
from safetensors.torch import save_file

from fdtrain.config import load_config
from fdtrain.data.split import Split
from fdtrain.diffusion.clocks import SoftTruncation, time_density
from fdtrain.diffusion.objective import Bound
from fdtrain.diffusion.process import alpha
from fdtrain.diffusion.weighting import WEIGHTINGS
from fdtrain.evaluation.likelihood import Likelihood, also_closed
from fdtrain.evaluation.load import SPEC_FILE, WEIGHTS_FILE, load_model
from fdtrain.evaluation.samples import Sampler
from fdtrain.networks.model import Model
from fdtrain.training.batch_noise import BatchNoise
from fdtrain.training.plan import model_spec

PRESETS = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))
DEMO = ROOT / "configs" / "digits.yaml"
SMALL = ["network.channels=8", "network.blocks=1", "network.attention=[]", "network.dropout=0"]


SDE = "score_sde: losses.py (eps = 1e-5), sde_lib.py, models/utils.py, configs/default_cifar10_configs.py"
FLOW = "score_flow: losses.py, sde_lib.py, configs/default_cifar10_configs.py"
SOFT = "Soft-Truncation: losses.py, sde_lib.py, configs/vp/CIFAR10/ddpmpp_nll_st.py"
VDM = "google-research/vdm: model_vdm.py, configs/cifar10.py"
IDODE = "thu-ml/i-DODE: model_vdm.py, configs/cifar10.py; Zheng et al. 2023, section 4.2"
LIPMAN = "Lipman et al. 2023, section 4.1; flow_matching: examples/image/training/train_loop.py"
SD3 = "Esser et al. 2024, section 3"
EDM = "NVlabs/edm: training/loss.py, training/networks.py; Karras et al. 2022, table 1"
IDDPM = "improved-diffusion: gaussian_diffusion.py, script_util.py, README.md"
LIN = "Lin et al. 2024, algorithm 1, section 3.2"
MIN_SNR = "Min-SNR-Diffusion-Training: gaussian_diffusion.py, configs/in256/*_pred_x0__min_snr_5_*.sh"
PAPER = "OpenReview Kv4FGa0Tis; its predictor by our reading"


def vp(tau):
    """Noise over signal of the linear-beta process, beta from 0.1 to 20."""
    return math.sqrt(math.expm1(0.5 * tau**2 * (20 - 0.1) + tau * 0.1))


def sub_vp(tau):
    total = 0.1 * tau + 0.5 * 19.9 * tau**2
    return -math.expm1(-total) / math.exp(-0.5 * total)


def cosine(tau):
    def angle(tau):
        return math.pi / 2 * (tau + 0.008) / 1.008

    signal = math.cos(angle(tau)) / math.cos(angle(0))
    return math.sqrt(1 - signal**2) / signal


def zero_snr(tau):
    last = math.exp(-0.25 * 20.1)
    signal = (math.exp(-0.25 * tau**2 * 19.9 - 0.05 * tau) - last) / (1 - last)
    return math.sqrt(1 - signal**2) / signal if signal > 0 else math.inf


def halfway(low, high):
    """Halfway in the logarithm of the noise, between two values of gamma."""
    square = 1 / math.sqrt((1 + math.exp(-low)) * (1 + math.exp(-high)))
    return math.sqrt(square / (1 - square))


# By preset: source; predictor, weighting and draws of the times; noise over signal, of images in [-1, 1], at the first
# time, at the median of the draws and at the last; what the embedding of time is given at the ends, sines of it;
# further settings. The first time of the flows is ours; Soft Truncation's noise is that of its longest interval.
PUBLISHED = {
    "paper": (PAPER, "plain bound stratified", (0, math.sqrt(1 / 3), math.inf), None, {"sample_solver": "sde2"}),
    "ddpmpp_vp": (SDE, "eps eps iid", (vp(1e-5), vp(0.500005), vp(1)), (999e-5, 999), {}),
    "subvp": (
        SDE,
        "eps eps iid",
        (sub_vp(1e-5), sub_vp(0.500005), sub_vp(1)),
        (999e-5, 999),
        {"network_input": "sub_vp"},
    ),
    # Its images are in [0, 1]; log sigma from its least on.
    "ve": (SDE, "score eps iid", (0.02, 2 * math.sqrt(0.5), 100), (0, math.log(5000)), {"network_input": "ve"}),
    "scoreflow": (FLOW, "eps bound iid", (vp(1e-5), math.sqrt(vp(1e-5) * vp(1)), vp(1)), (999e-5, 999), {}),
    "scoreflow_imagenet32": (FLOW, "eps bound iid", (vp(5e-5), math.sqrt(vp(5e-5) * vp(1)), vp(1)), None, {}),
    "soft_truncation": (
        SOFT,
        "eps bound iid",
        (vp(1e-5), math.sqrt(vp(1e-5) * vp(1)), vp(1)),
        (999e-5, 999),
        {"soft_truncation_k": 1.0},
    ),
    "vdm": (
        VDM,
        "eps bound lattice",
        (math.exp(-13.3 / 2), math.exp((-13.3 + 5) / 4), math.exp(5 / 2)),
        (0, 1000),
        {"network_skip": True, "decoder": "discrete"},
    ),
    "idode": (
        IDODE,
        "v bound lattice",
        (math.exp(-13.3 / 2), halfway(-13.3, 5), math.exp(5 / 2)),
        (0, 1000),
        {"network_skip": True, "decoder": "discrete"},
    ),
    "flow_matching": (LIPMAN, "flow flow iid", (1e-4 / (1 - 1e-4), 0.50005 / 0.49995, math.inf), (0.1, 1000), {}),
    "rectified_flow": (SD3, "flow flow iid", (1e-4 / (1 - 1e-4), 1, math.inf), None, {}),
    "edm": (EDM, "edm edm iid", (0.002, math.exp(-1.2), 80), (math.log(0.002) / 4, math.log(80) / 4), {}),
    "iddpm_cosine": (IDDPM, "eps eps iid", (cosine(1 / 4000), cosine(0.5), cosine(1 - 1 / 4000)), (0.25, 999.75), {}),
    "zero_snr_v": (LIN, "v v iid", (zero_snr(1e-3), zero_snr(0.5005), math.inf), None, {}),
    "min_snr": (MIN_SNR, "x0 min_snr iid", (cosine(1 / 1000), cosine(0.5), cosine(1 - 1 / 1000)), (1, 999), {}),
}


def test_every_preset_is_in_the_table_and_no_other():
    presets = {path.stem for path in PRESETS}
    assert PUBLISHED.keys() == presets - {"default"}
    for path in PRESETS:
        # What differs, and its source.
        assert set(yaml.safe_load(path.read_text())) <= {"diffusion", "network", "monitor"}
        assert path.read_text().startswith("# ")


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_s_numbers_are_those_of_its_source(preset, digits):
    config = load_config([DEMO, ROOT / "configs" / "baselines" / f"{preset}.yaml"])
    spec = model_spec(config, Split(str(digits), "test").description)
    _, names, noise, seen, others = PUBLISHED[preset]
    settings = config.diffusion.model_dump() | config.monitor.model_dump()
    assert [settings[key] for key in ("predictor", "weighting", "time_sampling")] == names.split()
    assert {key: settings[key] for key in others} == others
    density = time_density(config.diffusion.time_density, spec.scale, spec.bound.interval)
    t = density.quantile(torch.tensor([0, 0.5, 1], dtype=torch.float64))
    assert (t / alpha(t)).tolist() == pytest.approx(noise, rel=1e-4)
    if seen is not None:
        t = torch.tensor(spec.interval, dtype=torch.float64)
        times = Model(spec).predictor.inputs(torch.zeros(2, 1, 1, 1), t)[1]
        # Sines of 1000 times what they are given (positional), or of this itself and faster ones (fourier).
        factor = 1 if spec.network_options["time_embedding"] == "fourier" else 1000
        assert (factor * times).tolist() == pytest.approx(seen, rel=1e-4, abs=1e-8)


def test_the_preset_of_the_default_is_the_default():
    preset, default = (load_config(files).diffusion for files in ([DEMO, PRESETS[0].parent / "default.yaml"], DEMO))
    assert preset == default.model_copy(update={"interval": (0.0, 1.0)})


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_trains_is_evaluated_samples_and_loads_again(preset, digits, tmp_path):
    config, split = load_config([DEMO, preset], SMALL), Split(str(digits), "test")
    spec, diffusion = model_spec(config, split.description), config.diffusion
    torch.manual_seed(0)
    model = Model(spec)
    density = time_density(diffusion.time_density, spec.scale, spec.bound.interval)
    noise = BatchNoise(0, 64, 4, diffusion.time_sampling, density, spec.bound)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images, labels = split.batch(range(64))
    for step in range(3):
        batch, (_, bound) = noise.batch(step, range(16), images, labels), noise.at(step)
        low, high = bound.interval.t_min, bound.interval.t_max
        assert low <= batch.t.min()
        assert batch.t.max() <= high
        weighting = WEIGHTINGS[diffusion.weighting]
        loss = bound.loss(model.field(), batch.x0, batch.eps, batch.t, batch.pdf, weighting)
        optimizer.zero_grad()
        loss.train.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert torch.isfinite(norm)
        assert norm > 0
        assert torch.isfinite(loss.nelbo).all()
        optimizer.step()

    save_file(model.state_dict(), tmp_path / WEIGHTS_FILE)
    spec.save(tmp_path / SPEC_FILE)
    loaded = load_model(tmp_path)
    assert loaded.spec == spec
    bits = [Likelihood(m.eval(), split).elbo(range(4), 4) for m in (model, loaded)]
    assert torch.isfinite(bits[0]).all()
    assert torch.equal(*bits)
    assert Sampler("ode", steps=5).draw(loaded, range(2), 0).shape == (2, 1, 8, 8)


def test_soft_truncation_draws_an_interval_for_each_batch_alike_on_all_ranks():
    density = SoftTruncation()
    noise = BatchNoise(3, 64, 4, "iid", density, DIGITS.bound)
    images, labels = torch.zeros(32, 1, 2, 2, dtype=torch.uint8), torch.zeros(32)
    for lanes in (range(8), range(8, 16)):
        low = noise.at(5)[1].interval.t_min
        assert low <= noise.batch(5, lanes, images, labels).t.min() < low + 0.1
    starts = [noise.at(step)[1].interval.t_min for step in range(20)]
    assert len(set(starts)) == 20
    assert min(starts) >= density.interval.t_min
    # Half of the draws of log tau lie on either side.
    assert 3 <= sum(start > 0.06 for start in starts) <= 17


@pytest.mark.parametrize(
    ("settings", "closed"),
    [
        (["diffusion.interval=[0.01, 0.99]"], True),
        ([], False),
        (["diffusion.interval=[0.01, 0.99]", "diffusion.predictor=v"], False),
        (["diffusion.interval=[0.01, 0.99]", "diffusion.decoder=discrete"], False),
    ],
)
def test_the_closed_bound_beside_the_truncated_one(settings, closed, digits):
    """Where the field is finite on all of [0, 1]: untrained, both are the standard normal's, up to the truncation."""
    split = Split(str(digits), "test")
    model = Model(model_spec(load_config(DEMO, [*SMALL, *settings]), split.description)).eval()
    assert also_closed(model) == closed
    if closed:
        spec, values = model.spec, []
        for bound in (spec.bound, Bound(spec.levels)):
            values.append(Likelihood(model, split, bound=bound).elbo(range(16), 512).mean().item())
        assert values[0] == pytest.approx(values[1], abs=0.05)


def test_a_preset_is_launched_and_evaluated(launch, digits):
    """The whole program, with the discrete decoder: i-DODE."""
    preset = ROOT / "configs" / "baselines" / "idode.yaml"
    merged = yaml.safe_load(launch.config.read_text()) | yaml.safe_load(preset.read_text())
    launch.config.write_text(yaml.safe_dump(merged))
    launch("training.steps=2", "monitor.evaluate_every=2", "monitor.sample_every=2", processes=0)
    # The bound is named wherever it is logged.
    for line in launch.log():
        prefix = next(iter(line.keys() - {"step"})).split("/")[0]
        assert (line[f"{prefix}/t_min"], line[f"{prefix}/t_max"]) == pytest.approx((0.00129402, 0.996648), rel=1e-5)
    command = ["tools/evaluate.py", "nll", str(launch.run_folder()), "--data", str(digits), "--images", "4"]
    result = fork([*command, "--draws", "2", "--ode", "--tolerance", "1e-2"], launch.folder)
    assert result.returncode == 0, result.stderr
    assert "bound: [0.00129402, 0.996648], discrete decoder; dequantisation: none (bin centres)" in result.stdout
    assert "truncated normal dequantisation" in result.stdout
