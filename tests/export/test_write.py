"""Exports: each agrees with the model, is complete or absent, and runs without fdtrain where it says so."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import checkpoint_of
from conftest import environment
from models import DIGITS, filled, saved

import fdtrain
from fdtrain import lock
from fdtrain.diffusion.formulation import formulation_interval
from fdtrain.diffusion.solvers import GRID, sample, time_grid
from fdtrain.errors import UserError
from fdtrain.evaluation.load import load_model
from fdtrain.evaluation.samples import save_optimised
from fdtrain.export import agreement, write
from fdtrain.export.write import export
from fdtrain.networks.dit import SIZES
from fdtrain.randomness import Purpose, normal

VERSION_1 = Path(__file__).parent.parent / "evaluation" / "version_1"
NAMES = [str(i) for i in range(10)]
OPTIONS = {
    "ddpmpp": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "time_embedding": "fourier"},
    "vdm": {"channels": 8, "blocks": 1},
    "dit": {"size": "S", "patch": 4, "fourier_features": 1},
    "tiny_dit": {"size": "tiny", "patch": 4},
}


def formulated(predictor, density, stated=None, **options):
    """A model on the interval of a formulation or on the stated one, as training describes it."""
    interval = formulation_interval(predictor, DIGITS.scale, density, stated=stated, **options)
    parts = {"predictor": predictor, "interval": [interval.t_min, interval.t_max], **options}
    return replace(DIGITS, network="vdm", network_options=OPTIONS["vdm"], **parts)


SPECS = {
    # With and without labels.
    "ddpmpp": replace(
        DIGITS,
        network_options=OPTIONS["ddpmpp"],
        predictor="bounded",
        network_time="asinh",
        classes=NAMES,
        null_class=True,
    ),
    "vdm": replace(DIGITS, network="vdm", network_options=OPTIONS["vdm"], predictor="alpha"),
    "dit": replace(DIGITS, network="dit", network_options=OPTIONS["dit"], classes=NAMES),
    # Of a size that the paper does not have.
    "tiny_dit": replace(DIGITS, network="dit", network_options=OPTIONS["tiny_dit"], classes=NAMES),
    # Other formulations, on their intervals.
    "edm": formulated("edm", "edm"),
    # So short that the last step, a prediction, changes the images. Its arc cosine is not onnxruntime's in float64.
    "short": replace(
        formulated("eps", "cosine", (0.3, 0.99), network_time="cosine", decoder="discrete"), network_skip=True
    ),
}
PACKAGES = {"diffusers": ["diffusers"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}


def need(form):
    for package in PACKAGES.get(form, ()):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of a model, by its name in SPECS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (2, 32, 4))
        yield {name: saved(filled(spec), tmp_path_factory.mktemp(name)) for name, spec in SPECS.items()}


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """An export by model and form, made once."""
    made = {}

    def get(network, form):
        need(form)
        if (network, form) not in made:
            made[network, form] = tmp_path_factory.mktemp("exports") / form
            export(source[network], made[network, form], form)
        return made[network, form]

    return get


# A folder of Diffusers has the networks' code, so a DiT of the paper's sizes; an ONNX graph is made by way of torch's.
PAIRS = [
    *[(network, "diffusers") for network in ("ddpmpp", "vdm", "dit", "edm", "short")],
    *[(network, "onnx") for network in ("ddpmpp", "vdm", "tiny_dit", "short")],
    *[("tiny_dit", "torch_export"), ("short", "torch_export"), ("edm", "safetensors")],
]


@pytest.mark.parametrize(("network", "form"), PAIRS)
def test_every_model_in_every_form(network, form, exported, source):
    folder = exported(network, form)
    record = json.loads((folder / "export.json").read_text())
    assert record["largest_difference"] <= agreement.TOLERANCE
    assert record["format"] == form
    assert record["weights_sha256"] == fdtrain.load(source[network]).origin.sha256
    assert set(record["files"]) == {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "export.json"
    }
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlicense: "unknown"\n')
    assert f"{record['largest_difference']:.1e} at most" in card
    assert "FOLDER" not in card
    assert "LABELS" not in card
    assert f"exported by fdtrain {fdtrain.__version__}" in card
    interval = "[0, 1]" if SPECS[network].interval == [0.0, 1.0] else str(SPECS[network].interval)
    assert f"on the time interval {interval}" in card
    assert (f"float64 in {interval}" in card) == (form in ("onnx", "torch_export"))


def test_a_difference_fails_and_leaves_nothing(source, tmp_path, monkeypatch):
    model = load_model(source["vdm"])
    with pytest.raises(UserError, match=r"the graph differs from the model by \d\.\de-0[34] \(relative"):
        agreement.check(model, lambda x, t, label: model(x, t, label) + 1e-3, "the graph")
    with pytest.raises(UserError, match=r"differs from the model by inf"):
        agreement.check(model, lambda x, t, label: model(x, t, label) * torch.nan, "the graph")
    # Only at one end of the interval.
    with pytest.raises(UserError, match="differs"):
        agreement.check(model, lambda x, t, label: model(x, t, label) + (t == 1).view(-1, 1, 1, 1), "the graph")
    monkeypatch.setattr(agreement, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="Nothing was written"):
        export(source["vdm"], tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_when_the_new_one_is_complete(source, tmp_path, monkeypatch):
    # Earlier versions wrote two files, without checksums: as source is.
    shutil.copytree(source["vdm"], tmp_path / "e")
    with monkeypatch.context() as broken:
        broken.setattr(agreement, "TOLERANCE", -1.0)
        with pytest.raises(UserError, match="differs"):
            export(source["short"], tmp_path / "e")
    assert load_model(tmp_path / "e").spec == SPECS["vdm"]
    export(source["short"], tmp_path / "e")
    assert load_model(tmp_path / "e").spec == SPECS["short"]
    # Over itself too.
    export(tmp_path / "e", tmp_path / "e", licence="apache-2.0")
    assert load_model(tmp_path / "e").spec == SPECS["short"]
    assert (tmp_path / "e" / "README.md").read_text().startswith('---\nlicense: "apache-2.0"\n')
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_optimised_grids_come_along(source, tmp_path):
    shutil.copytree(source["vdm"], tmp_path / "source")
    sha256 = fdtrain.load(source["vdm"]).origin.sha256
    save_optimised(tmp_path / "source", sha256, "ode", 2, (1.0, 0.4, 0.0))
    export(tmp_path / "source", tmp_path / "e")
    assert fdtrain.load(tmp_path / "e").sample(1, solver="ode", grid="optimised", steps=2).shape == (1, 1, 8, 8)


def test_what_a_killed_export_left_is_removed(source, tmp_path):
    """But not what another one is writing."""
    left = [tmp_path / f".e.{'0' * 8}", tmp_path / f".e.{'1' * 8}.replaced"]
    others = [tmp_path / ".e.notes", tmp_path / f".other.{'3' * 8}"]
    for folder in (*left, *others):
        folder.mkdir()
    with lock.held(tmp_path / "e", lock=tmp_path / ".e.lock"), pytest.raises(UserError, match="e is in use by process"):
        export(source["vdm"], tmp_path / "e")
    assert left[0].exists()
    export(source["vdm"], tmp_path / "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["e", *(path.name for path in others)])


def test_the_card_has_the_figures_of_these_weights(tmp_path):
    """And no others: results of another step are of other weights."""
    model = filled(DIGITS)
    checkpoint_of(tmp_path / "run", model, 1)
    sha256 = fdtrain.load(tmp_path / "run").origin.sha256
    content = json.loads((VERSION_1 / "nll_test_first2.json").read_text()) | {"images": 300, "weights_sha256": sha256}
    content["elbo"] |= {"bits_per_dim": 2.3456, "error_images": 0.02}
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir()
    (folder / "nll_test.json").write_text(json.dumps(content))
    export(tmp_path / "run", tmp_path / "e")
    found = load_model(tmp_path / "e").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())
    card = (tmp_path / "e" / "README.md").read_text()
    assert "| ELBO, bits/dim | 2.3456 ± 0.0200 | 300 of 300 images of digits/test |" in card
    assert "weights of step 7" in card
    hostile = "[free](http://evil.example) www.evil.example <b> a|b \u202e me@evil.example"
    (folder / "nll_test.json").write_text(json.dumps({**content, "dataset": hostile}))
    export(tmp_path / "run", tmp_path / "e")
    shown = "[free]\\(http&#58;//evil.example) www&#46;evil.example &lt;b> a\\|b \ufffd me&#64;evil.example/test |"
    assert shown in (tmp_path / "e" / "README.md").read_text()
    (folder / "nll_test.json").write_text(json.dumps({**content, "weights_sha256": "0" * 64}))
    export(tmp_path / "run", tmp_path / "e")
    assert "None were recorded for these weights" in (tmp_path / "e" / "README.md").read_text()


def test_onnx_sampler_needs_neither_torch_nor_fdtrain(exported, source, tmp_path):
    cases = {
        "short": (["--solver", "heun_edm", "--grid", "karras"], {"solver": "heun_edm", "grid": "karras"}),
        "ddpmpp": (["--guidance", "2", "--label", "3"], {"label": 3, "guidance": 2.0}),
        "vdm": (["--solver", "ode"], {"solver": "ode"}),
    }
    for network, (options, own) in cases.items():
        folder = exported(network, "onnx")
        block = "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'fdtrain', 'onnx'])); "
        run = f"{block}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        arguments = ["--images", "3", "--steps", "5", "--seed", "4", "--batch", "2", "--out", str(tmp_path / "x.npz")]
        command = [sys.executable, "-c", run, str(folder / "sample.py"), *arguments, *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=120)
        assert done.returncode == 0, done.stderr
        model = fdtrain.load(source[network])
        expected = model.pixels(model.sample(3, steps=5, seed=4, **own)).permute(0, 2, 3, 1).numpy()
        found = np.load(tmp_path / "x.npz")["arr_0"]
        assert found.shape == expected.shape
        # Rounding moves a value across the edge of a level now and then.
        assert (found != expected).mean() < 0.02
    for option, reason in (("--label 3", "this model was trained without labels"), ("--grid sin", "no grid 'sin'")):
        wrong = [*command, *option.split()]
        refused = subprocess.run(wrong, capture_output=True, text=True, env=environment(), timeout=120)
        assert refused.returncode == 2
        assert reason in refused.stderr


def test_the_graph_of_torch_export_takes_any_number_of_images(exported, source):
    graph = torch.export.load(exported("tiny_dit", "torch_export") / "model.pt2").module()
    x, t, label = agreement.inputs(filled(SPECS["tiny_dit"]), 5)
    assert torch.equal(graph(x, t, label), load_model(source["tiny_dit"])(x, t, label))
    with pytest.raises(UserError, match="is an export in another form"):
        fdtrain.load(exported("tiny_dit", "torch_export"))


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DIFFUSERS = """
import sys; sys.modules['fdtrain'] = None
import torch, numpy as np
from diffusers import DDIMScheduler, DiffusionPipeline

def load(name):
    pipeline = DiffusionPipeline.from_pretrained(f"{sys.argv[1]}/{name}", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

def draw(pipeline, **options):
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size=3, num_inference_steps=4, generator=generator, **options).images

def solve(pipeline, solver, x, *label):
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, solver=solver)
    pipeline.scheduler = scheduler
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps:
        x = scheduler.step(pipeline.field(x, t, *label).sample, t, x).prev_sample
    return x.detach().numpy()

first = load("ddpmpp")
images = draw(first, output_type="levels", guidance_scale=2.0)
first.save_pretrained("saved")
second = load("saved")
again = draw(second, output_type="levels", guidance_scale=2.0)
assert images.shape == (3, 1, 8, 8) and torch.equal(images, again), images
second.save_pretrained("saved")
for (name, a), (_, b) in zip(first.field.state_dict().items(), second.field.state_dict().items()):
    assert torch.equal(a, b), name
assert draw(load("saved"))[0].size == (8, 8)
noise = torch.from_numpy(np.load("noise.npy"))
np.save("ddpmpp.npy", solve(first, "ode", noise, torch.tensor([1, 2, 3])))
for name in ("configuration", "weights", "scale", "network"):
    try:
        load(name)
    except ValueError as error:
        print(error)
pipeline = load("short")
generators = [torch.manual_seed(0)] * 2
calls = [dict(num_inference_steps=0), dict(num_inference_steps=2.5), dict(batch_size=0), dict(output_type="latent")]
calls += [dict(batch_size=3, generator=generators), dict(guidance_scale=float("nan")), dict(num_inference_steps=1)]
own = pipeline.scheduler
for call in [*calls, None]:
    try:
        if call is None:
            pipeline.scheduler = DDIMScheduler.from_config(own.config)
        pipeline(**{"num_inference_steps": 2, **(call or {})})
        print("drawn")
    except ValueError as error:
        print(error)
pipeline.scheduler = type(own).from_config(own.config, solver="sde")
print(len(pipeline(batch_size=2, num_inference_steps=2, generator=generators).images))
np.save("short.npy", solve(pipeline, "ode1", noise))
"""


def test_diffusers_pipelines(exported, source, tmp_path):
    """What is saved again is as before, a folder that was edited is refused, so is what a pipeline cannot do, before
    anything is drawn; schedulers solve as ours do. One process for all, without fdtrain: Diffusers takes a while to
    import."""
    for name in ("configuration", "weights", "scale", "network", "ddpmpp"):
        shutil.copytree(exported("ddpmpp", "diffusers"), tmp_path / name)
    shutil.copytree(exported("short", "diffusers"), tmp_path / "short")
    configuration = Path("field", "config.json")
    rewrite(tmp_path / "configuration" / configuration, '"predictor_name": "bounded"', '"predictor_name": "plain"')
    flip(tmp_path / "weights" / "field" / "diffusion_pytorch_model.safetensors")
    rewrite(tmp_path / "scale" / "scheduler" / "scheduler_config.json", '"levels": 17', '"levels": 16')
    # Without checksums the configuration is checked all the same.
    (tmp_path / "network" / "field" / "checksums.json").unlink()
    rewrite(tmp_path / "network" / configuration, '"network_name": "ddpmpp"', '"network_name": "vdm"')
    noise = normal(DIGITS.shape, torch.device("cpu"), 5, Purpose.SAMPLE, [(i, 0) for i in range(3)])
    np.save(tmp_path / "noise.npy", noise.numpy())
    variables = {**environment(), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", DIFFUSERS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    expected = [
        "config.json was changed since the model was saved",
        "diffusion_pytorch_model.safetensors was changed since the model was saved",
        "levels 16 is not the model's, 17. Export the model again.",
        "this file is of network 'ddpmpp' in version 1",
        "num_inference_steps: give a whole number from 1 on, not 0",
        "num_inference_steps: give a whole number from 1 on, not 2.5",
        "batch_size: give a whole number from 1 on, not 0",
        "output_type: there is no 'latent' (this model has no latents), but pil, np, pt, levels",
        "generator: 2 for 3 images; give one, or one for each",
        "guidance_scale: nan is not finite",
        "a truncated interval takes 2 steps or more, not 1",
        # It drew other pictures.
        "a DDIMScheduler does not go with this model, which needs its own FdtrainScheduler. Another solver is "
        'type(pipeline.scheduler).from_config(pipeline.scheduler.config, solver="sde").',
        "2",
    ]
    for line, part in zip(done.stdout.splitlines(), expected, strict=True):
        assert part in line
    names = [{p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*.py")} for f in ("ddpmpp", "saved")]
    assert names[0] == names[1]
    for name, solver, label in (("ddpmpp", "ode", torch.tensor([1, 2, 3])), ("short", "ode1", None)):
        model = load_model(source[name])
        times = time_grid(GRID, 6, DIGITS.levels, DIGITS.dims, model.spec.bound.interval)
        with torch.no_grad():
            drawn = sample(model.field(label), noise, times, solver, interval=model.spec.bound.interval)
        found = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        torch.testing.assert_close(found, drawn, rtol=1e-3, atol=1e-3)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_folder_that_was_changed(source, tmp_path):
    export(source["vdm"], tmp_path / "e")
    for text in ("{", "[]", '{"files": {}}'):
        shutil.copytree(tmp_path / "e", tmp_path / "damaged", dirs_exist_ok=True)
        (tmp_path / "damaged" / "export.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            fdtrain.load(tmp_path / "damaged")
    flip(tmp_path / "e" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors was changed since it was exported"):
        export(tmp_path / "e", tmp_path / "f")
    shutil.copytree(source["vdm"], tmp_path / "later")
    config = tmp_path / "later" / "config.json"
    config.write_text(re.sub(r'"version": \d+', '"version": 99', config.read_text()))
    with pytest.raises(UserError, match="version 99, this fdtrain reads"):
        export(tmp_path / "later", tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("form", "package"), [("diffusers", "diffusers"), ("onnx", "onnxruntime")])
def test_a_missing_package_names_its_extra(source, tmp_path, monkeypatch, form, package):
    need(form)
    for name in [name for name in sys.modules if name.startswith("fdtrain.export.") and name != write.__name__]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'has no {package}\. .* pip install "fdtrain\[export\]"'):
        export(source["vdm"], tmp_path / "e", form)
    assert not (tmp_path / "e").exists()


def test_other_mistakes(source, tmp_path):
    for opset in (17, 1000):
        with pytest.raises(UserError, match=f"--opset {opset}: it must be 18 to"):
            export(source["vdm"], tmp_path / "e", "onnx", opset=opset)
    with pytest.raises(UserError, match="only --format onnx has one"):
        export(source["vdm"], tmp_path / "e", opset=20)
    with pytest.raises(UserError, match="there is no 'tensorrt'; there are safetensors, diffusers, onnx"):
        export(source["vdm"], tmp_path / "e", "tensorrt")
    with pytest.raises(UserError, match="holds no model"):
        export(tmp_path, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds something else than an export"):
        export(source["vdm"], tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write into"):
        export(source["vdm"], tmp_path / "file")
