"""Every preset of configs/baselines/ over the demo: trains, is evaluated, samples, exports and loads again."""

from functools import partial

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
from fdtrain.diffusion.solvers import time_grid
from fdtrain.diffusion.weighting import WEIGHTINGS
from fdtrain.errors import UserError
from fdtrain.evaluation.likelihood import nll
from fdtrain.evaluation.load import SPEC_FILE, WEIGHTS_FILE, load_model
from fdtrain.evaluation.sampling import samples
from fdtrain.networks.model import Model
from fdtrain.training.batch_noise import BatchNoise
from fdtrain.training.plan import model_spec

PRESETS = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))
DEMO = ROOT / "configs" / "digits.yaml"
SMALL = ["network.channels=8", "network.blocks=1", "network.attention=[]", "network.dropout=0"]


def test_the_presets_there_are():
    names = {path.stem for path in PRESETS}
    assert names >= {
        "fulldiffusion",
        "ddpmpp_vp",
        "subvp",
        "scoreflow",
        "soft_truncation",
        "vdm",
        "vdm_learned",
        "idode",
        "flow_matching",
        "rectified_flow",
        "edm",
        "iddpm_cosine",
        "zero_snr_v",
        "ve",
        "min_snr",
    }
    for path in PRESETS:
        # What differs, and its source.
        assert set(yaml.safe_load(path.read_text())) <= {"diffusion", "network"}
        assert path.read_text().startswith("# ")


def test_fulldiffusion_is_the_default():
    preset, default = (
        load_config(files).diffusion for files in ([DEMO, PRESETS[0].parent / "fulldiffusion.yaml"], DEMO)
    )
    assert preset == default.model_copy(update={"interval": (0.0, 1.0)})


def test_files_are_laid_over_each_other(tmp_path):
    (tmp_path / "above.yaml").write_text("training: {lr: 0.5}\nname: other")
    joined, base = load_config([DEMO, tmp_path / "above.yaml"], ["training.steps=7"]), load_config(DEMO)
    assert joined.training == base.training.model_copy(update={"lr": 0.5, "steps": 7})
    assert (joined.name, joined.network) == ("other", base.network)
    (tmp_path / "wrong.yaml").write_text("training: {lrr: 0.5}")
    with pytest.raises(UserError, match=r"unknown key 'lrr'.*digits\.yaml, .*wrong\.yaml"):
        load_config([DEMO, tmp_path / "wrong.yaml"])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_trains_is_evaluated_samples_and_loads_again(preset, digits, tmp_path):
    config, split = load_config([DEMO, preset], SMALL), Split(str(digits), "test")
    spec, diffusion = model_spec(config, split.description), config.diffusion
    torch.manual_seed(0)
    model = Model(spec)
    density = time_density(diffusion.base_density, spec.scale, spec.bound.interval)
    noise = BatchNoise(0, 64, 4, diffusion.time_sampling, density, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images = split.batch(range(64))[0]
    for step in range(3):
        batch = noise.batch(step, range(16), images, None, spec.bound)
        low, high = batch.bound.interval.t_min, batch.bound.interval.t_max
        assert low <= batch.t.min()
        assert batch.t.max() <= high
        weighting = WEIGHTINGS[diffusion.weighting]
        loss = batch.bound.loss(model.field(), batch.x0, batch.eps, batch.t, batch.pdf, weighting)
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
    times = nll.time_density_of(spec.bound.interval, spec.scale)
    bits = [nll.elbo(m.eval(), split, range(4), times, 4) for m in (model, loaded)]
    assert torch.isfinite(bits[0]).all()
    assert torch.equal(*bits)
    grid = time_grid("uniform", 5, spec.scale, spec.bound.interval)
    assert samples.draw(loaded, range(2), None, grid, "ode").levels.shape == (2, 1, 8, 8)


def test_soft_truncation_draws_an_interval_for_each_batch_alike_on_all_ranks():
    density = SoftTruncation()
    noise = BatchNoise(3, 64, 4, "iid", density, torch.device("cpu"))
    images = torch.zeros(32, 1, 2, 2, dtype=torch.uint8)
    draw = partial(noise.batch, images=images, labels=None, bound=DIGITS.bound)
    ranks = [draw(5, lanes).bound.interval for lanes in (range(8), range(8, 16))]
    assert ranks[0] == ranks[1]
    starts = [draw(step, range(8)).bound.interval.t_min for step in range(20)]
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
    assert nll.also_closed(model) == closed
    if closed:
        spec, values = model.spec, []
        for bound in (spec.bound, Bound(spec.levels)):
            density = nll.time_density_of(bound.interval, spec.scale)
            values.append(nll.elbo(model, split, range(16), density, 512, bound=bound).mean().item())
        assert values[0] == pytest.approx(values[1], abs=0.05)


def test_an_interval_that_a_preset_does_not_have_is_refused(digits):
    config = load_config([DEMO, PRESETS[0].parent / "ddpmpp_vp.yaml"], ["diffusion.interval=[0, 1]"])
    with pytest.raises(UserError, match=r"diffusion\.interval: predictor eps .* is singular at t = 0"):
        model_spec(config, Split(str(digits), "test").description)


def test_a_preset_is_launched_resumed_and_evaluated(launch, digits):
    """The whole program, with the discrete decoder: i-DODE."""
    preset = ROOT / "configs" / "baselines" / "idode.yaml"
    merged = yaml.safe_load(launch.config.read_text()) | yaml.safe_load(preset.read_text())
    launch.config.write_text(yaml.safe_dump(merged))
    settings = ["training.zero_stage=0", "checkpoint.every=2", "monitor.evaluate_every=4", "monitor.sample_every=4"]
    launch(*settings, "training.steps=4", "name=whole", processes=0)
    launch(*settings, "training.steps=2", "name=cut", processes=0)
    launch(*settings, "training.steps=4", "name=cut", processes=0, resume=True)
    assert launch.losses("cut") == pytest.approx(launch.losses("whole"), rel=1e-5)
    # The bound is named wherever it is logged.
    for line in launch.log("whole"):
        prefix = next(iter(line.keys() - {"step"})).split("/")[0]
        assert (line[f"{prefix}/t_min"], line[f"{prefix}/t_max"]) == pytest.approx((0.00129402, 0.996648), rel=1e-5)
    run = launch.run_folder("whole")
    command = ["tools/evaluate.py", "nll", str(run), "--data", str(digits), "--images", "4", "--draws", "2", "--ode"]
    result = fork([*command, "--tolerance", "1e-2"], launch.folder)
    assert result.returncode == 0, result.stderr
    assert "bound: [0.00129402, 0.996648], discrete decoder; dequantisation: none (bin centres)" in result.stdout
    assert "truncated normal dequantisation" in result.stdout
