"""``fdtrain sample`` and ``fdtrain evaluate fid`` as commands, alone and on two processes."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import checkpoint_of
from conftest import fork
from models import DIGITS, filled, saved
from PIL import Image

from fdtrain.data.split import Split
from fdtrain.evaluation import fid as distances
from fdtrain.evaluation import label_features, result
from fdtrain.evaluation.samples import Sampler


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(filled(DIGITS), tmp_path_factory.mktemp("sampling") / "model")


@pytest.fixture(scope="module")
def features(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling") / "features"
    split = Split(digits, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_features, "EPOCHS", 3)
        label_features.save(*label_features.train(split), folder)
    return folder


def images_of(path):
    with np.load(path) as content:
        return content["arr_0"]


def test_every_form_holds_the_same_images(command, model, tmp_path):
    common = [model, "--images", 10, "--steps", 3, "--batch", 4]
    out = command("sample", *common, "--out", tmp_path / "a.npz")
    assert "a.npz: 10 images, ode, 3 evaluations each" in out
    command("sample", *common, "--out", tmp_path / "png")
    command("sample", *common, "--out", tmp_path / "shards", "--shards")
    images = images_of(tmp_path / "a.npz")
    assert (images.shape, images.dtype) == ((10, 8, 8, 1), np.uint8)
    assert len(np.unique(images, axis=0)) == 10
    for i, image in enumerate(images):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / f"{i:06d}.png")), image[..., 0])
    split = Split(tmp_path / "shards", "samples")
    assert (split.description.name, split.description.levels, len(split)) == ("digits-samples", 17, 10)
    levels = split.batch(range(10))[0].numpy()
    assert np.array_equal(np.round(levels[:, 0] * (255 / 16)).astype(np.uint8), images[..., 0])
    records = [
        json.loads((tmp_path / f).read_text()) for f in ("a.npz.json", "png/samples.json", "shards/samples.json")
    ]
    assert len({record["pixels_sha256"] for record in records}) == 1
    assert (records[0]["solver"], records[0]["nfe"], records[0]["noise"]) == ("ode", 3, "cpu")
    assert not list(tmp_path.rglob("*.sampling"))


def interrupted(drawn, draw):
    """Draws twice, and is interrupted."""

    def interrupted(self, model, images, seed):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(images)
        return draw(self, model, images, seed)

    return interrupted


def test_an_interrupted_command_goes_on(command, model, tmp_path, monkeypatch):
    common = [model, "--images", 20, "--steps", 3, "--out", tmp_path / "a.npz"]
    drawn, draw = [], Sampler.draw
    monkeypatch.setattr(Sampler, "draw", interrupted(drawn, draw))
    assert "The same command goes on" in command("sample", *common, "--batch", 8, rc=2)
    assert not (tmp_path / "a.npz").exists()
    assert "unfinished samples of seed 0, not 1. Repeat that" in command("sample", *common, "--seed", 1, rc=2)
    monkeypatch.setattr(Sampler, "draw", lambda self, *rest: drawn.append(rest[1]) or draw(self, *rest))
    command("sample", *common, "--batch", 3)
    # Another batch size: what there was stays.
    assert sorted(i for images in drawn for i in images) == list(range(20))
    command("sample", *common[:-1], tmp_path / "b.npz", "--batch", 20)
    a, b = (images_of(tmp_path / f"{name}.npz").astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 16  # a level: batches round differently


def test_what_is_complete_is_not_sampled_again(command, model, tmp_path, monkeypatch):
    common = [model, "--images", 4, "--steps", 2, "--out", tmp_path / "a"]
    command("sample", *common)
    monkeypatch.setattr(Sampler, "draw", None)
    # As a kill leaves it while the parts are removed.
    (tmp_path / "a" / ".sampling").mkdir()
    (tmp_path / "a" / ".sampling" / "request.json").touch()
    assert "complete already" in command("sample", *common)
    assert not (tmp_path / "a" / ".sampling").exists()
    message = command("sample", *common, "--solver", "ode2", rc=2)
    assert "holds samples of solver ode, not ode2. Choose another --out, or remove it" in message
    assert "form png, not shards" in command("sample", *common, "--shards", rc=2)
    (tmp_path / "a" / "000002.png").unlink()
    assert "was changed since it was written" in command("sample", *common, rc=2)


def test_a_kill_while_finishing_loses_nothing(command, model, tmp_path, monkeypatch):
    common = [model, "--images", 4, "--steps", 2, "--out", tmp_path / "a", "--shards"]
    monkeypatch.setattr(result, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "cannot write" in command("sample", *common, rc=2)
    monkeypatch.undo()
    monkeypatch.setattr(Sampler, "draw", None)
    command("sample", *common)
    assert len(Split(tmp_path / "a", "samples")) == 4


def test_other_files_are_not_overwritten(command, model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds something else already" in command("sample", model, "--steps", 2, "--out", tmp_path, rc=2)
    (tmp_path / "a.npz").write_text("mine")
    assert "holds something else already" in command("sample", model, "--steps", 2, "--out", tmp_path / "a.npz", rc=2)
    assert (tmp_path / "a.npz").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--solver", "dpmpp2m", "--nfe", "5"], ""),
        (["--solver", "heun_edm", "--nfe", "5"], "--nfe 5: a step of heun_edm here takes 2 evaluations"),
        (["--guidance", "2"], "label_dropout above 0"),
        (["--guidance", "nan"], "must be finite"),
        (["--shards"], "must be a folder"),
        (["--grid", "1,0.6,0", "--steps", "5"], "3 times are 2 steps, not 5"),
        (["--out", "/dev/null/x.png", "--steps", "1"], "--out: cannot write"),
        (["--out", "x.JPG"], "--out: .jpg files are not written. Give a .png or .npz file"),
        (["--device", "abacus"], "--device abacus: Expected one of"),
    ],
)
def test_options(command, model, tmp_path, arguments, part):
    common = [model, "--out", tmp_path / "x.png", "--images", "2", *arguments]
    assert part in command("sample", *common, rc=2 if part else 0)


def test_samples_by_label_and_guided(command, tmp_path):
    spec = replace(DIGITS, classes=[str(i) for i in range(10)], null_class=True)
    common = ["sample", saved(filled(spec), tmp_path / "model"), "--images", 12, "--steps", 2, "--out"]
    command(*common, tmp_path / "a.npz")
    command(*common, tmp_path / "b.npz", "--label", 7, "--guidance", 2)
    for name, expected in (("a", [i % 10 for i in range(12)]), ("b", [7] * 12)):
        with np.load(tmp_path / f"{name}.npz") as content:
            assert content["arr_1"].tolist() == expected
    assert json.loads((tmp_path / "b.npz.json").read_text())["nfe"] == 4
    assert "has classes 0 to 9" in command(*common, tmp_path / "c.npz", "--label", 10, rc=2)


@pytest.fixture
def fid(command, features, digits, tmp_path):
    """The record of ``fdtrain evaluate fid``, with what it ``said``; or that alone, where it ends with another code."""

    def run(*arguments, rc=0, data=("--data", digits, "--split", "test")):
        path = tmp_path / "record.json"
        said = command("evaluate", "fid", "--features", features, *data, "--json", path, *arguments, rc=rc)
        return said if rc else json.loads(path.read_text()) | {"said": said}

    return run


def test_distances_on_one_process_and_on_two(fid, model, features, digits, tmp_path):
    common = ["--images", 70, "--sets", 3, "--steps", 3, "--batch", 16]
    one = fid(model, *common)
    more = [model, "--data", digits, "--split", "test", "--features", features]
    words = ["fid", *more, *common, "--json", tmp_path / "two.json"]
    done = fork(["tools/evaluate.py", *map(str, words)], tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert one["values"] == pytest.approx(two["values"], rel=1e-6)
    for key in ("kid", "precision", "recall", "inception_score", "spread"):
        assert one[key] == pytest.approx(two[key], rel=1e-5), key
    same = ("reference", "features", "images", "seeds", "weights_sha256", "solver", "nfe", "kind", "name", "unfinished")
    assert [one[key] for key in same] == [two[key] for key in same]
    assert (one["name"], one["images"], one["seeds"]) == ("Frechet distance (digits-features)", 70, [0, 1, 2])
    assert (one["nfe"], one["unfinished"], one["reference"]["images"]) == (3, False, 300)
    assert f"Frechet distance (digits-features) {one['value']:.4f} +- " in one["said"]
    assert "FID" not in one["said"]
    assert "against 300 images of digits/test" in one["said"]
    assert one["spread"] == pytest.approx(np.std(one["values"], ddof=1))


def test_the_images_themselves_are_at_no_distance(fid, digits, tmp_path):
    """The split as a set of samples, from a .npz: distance 0, precision and recall 1."""
    levels, _ = Split(digits, "test").batch(range(300))
    np.savez(tmp_path / "a.npz", (levels.float() * (255 / 16)).round().byte().permute(0, 2, 3, 1).numpy())
    found = fid("--samples", tmp_path / "a.npz")
    assert found["value"] < 1e-6
    assert (found["precision"], found["recall"], found["spread"], found["weights_sha256"]) == (1, 1, None, None)


def test_stored_samples_measure_as_those_drawn(command, fid, model, tmp_path):
    how = ["--images", 40, "--steps", 3, "--batch", 16]
    sets = [tmp_path / "5", tmp_path / "6"]
    for folder in sets:
        command("sample", model, *how, "--seed", folder.name, "--out", folder)
    drawn, stored = fid(model, *how, "--seed", 5, "--sets", 2), fid("--samples", *sets)
    assert drawn["values"] == pytest.approx(stored["values"], rel=1e-6)
    for key in ("solver", "nfe", "grid", "guidance", "seeds", "weights_sha256", "images"):
        assert drawn[key] == stored[key], key
    message = fid("--samples", *sets, "--images", 41, rc=2)
    assert "holds 40 images, 41 are asked for. Finish it, or lower --images" in message
    assert "the same seed" in fid("--samples", sets[0], sets[0], rc=2)


def test_an_interrupted_evaluation_goes_on(fid, model, tmp_path, monkeypatch):
    compare, count = distances._compare, []

    def stops(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return compare(*arguments)

    monkeypatch.setattr(distances, "_compare", stops)
    with pytest.raises(KeyboardInterrupt):
        fid(model, "--images", 20, "--steps", 2)
    partly = json.loads((tmp_path / "record.json").read_text())
    assert (len(partly["values"]), partly["unfinished"]) == (2, True)
    whole = fid(model, "--images", 20, "--steps", 2)
    assert len(count) == 4
    assert whole["values"][:2] == partly["values"]
    assert (len(whole["values"]), whole["unfinished"]) == (3, False)


@pytest.mark.parametrize("name", ["x/../../../victim/settings", "\u202e数字" * 100])
def test_results_are_in_the_run_whatever_the_features_are_called(command, features, digits, tmp_path, name):
    """A name from a file of somebody else chooses no path: neither outside the run nor where no report looks."""
    checkpoint_of(tmp_path / "run", filled(DIGITS), 1)
    victim = tmp_path / "victim" / "settings.json"
    victim.parent.mkdir()
    victim.write_text("mine")
    shutil.copytree(features, tmp_path / "features")
    described = json.loads((features / "features.json").read_text())
    (tmp_path / "features" / "features.json").write_text(json.dumps(described | {"name": name}))
    options = ["--data", digits, "--split", "test", "--images", 4, "--grid", "1,0", "--sets", 1]
    out = command("evaluate", "fid", tmp_path / "run", "--features", tmp_path / "features", *options)
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "run", "victim"]
    [path] = (tmp_path / "run" / "evaluation").iterdir()
    assert path.name.startswith("frechet_")
    found = result.read(path)
    assert (found.features.name, found.grid) == (name, [1.0, 0.0])
    # Nor does it turn the console's line round.
    assert name.replace("\u202e", "\ufffd")[:100] in out
    assert "\u202e" not in out


def test_statistics_of_another_program_take_the_place_of_the_data(fid, model, tmp_path):
    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    drawn = [model, "--images", 20, "--sets", 1, "--steps", 2]
    expected = fid(*drawn, "--reference", ours)
    with np.load(ours) as content:
        np.savez(theirs, mu=content["mu"], sigma=content["sigma"])
    found = fid(*drawn, "--reference", theirs, data=())
    assert "against the statistics in theirs.npz (SHA-256 " in found["said"]
    assert found["value"] == pytest.approx(expected["value"], rel=1e-9)
    assert (found["kid"], found["precision"], found["reference"]["file"]) == (None, None, "theirs.npz")
    assert expected["kid"] is not None
    message = fid(*drawn, "--reference", theirs, rc=2)
    assert f"--data: {theirs} has statistics of images of its own. Leave it out." in message
    # Statistics of other images, or of features of another size, are refused.
    message = fid(*drawn, "--reference", ours, "--flip", rc=2)
    assert f"--reference {ours} was made of something else: images 300, not 600; flip False, not True." in message
    np.savez(theirs, mu=np.zeros(4), sigma=np.eye(4))
    message = fid(*drawn, "--reference", theirs, data=(), rc=2)
    assert "is of 4 features, 'digits-features' has 64. Name the features" in message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give a model to sample from, or samples with --samples"),
        (["{model}", "--seed", "-1"], "--seed must be from 0 to 9223372036854775805"),
        (["{model}", "--reference", "a.safetensors"], "--reference a.safetensors: name a .npz file"),
        (["{model}", "--images", "1", "--features", "/nowhere.pt"], "cannot read /nowhere.pt"),
    ],
)
def test_mistakes(fid, model, arguments, part):
    assert part in fid(*(a.format(model=model) for a in arguments), rc=2)


def test_a_curve_by_named_features(command, fid, model, features, digits, tmp_path):
    """Its distance is the one that fid gives to the same samples; without features it is of the pixels."""

    def curve(name, *options, rc=0):
        path = tmp_path / f"{name}.json"
        common = [model, "--data", digits, "--images", 6, "--strata", 2, "--reference", 4, "--nfe", 2, "--json", path]
        said = command("evaluate", "curve", *common, "--solvers", "sde", "heun_edm", *options, rc=rc)
        return said if rc else json.loads(path.read_text())

    named, plain = curve("a", "--features", features), curve("b")
    one = fid(model, "--images", 6, "--sets", 1, "--nfe", 2, "--solver", "sde")
    point = named["points"][0]
    assert point["distance_by_seed"][0] == pytest.approx(one["value"], rel=1e-6)
    assert point["distance"] == pytest.approx(sum(point["distance_by_seed"]) / 3)
    assert len(set(point["distance_by_seed"])) == 3
    assert (named["distance"], named["features"]) == (one["name"], one["features"])
    assert plain["distance"] == "Frechet distance (pixels)"
    assert plain["points"][0]["distance"] != named["points"][0]["distance"]
    assert [point["rms"] for point in plain["points"]] == [point["rms"] for point in named["points"]]
    assert "cannot read /nowhere.pt" in curve("c", "--features", "/nowhere.pt", rc=2)


def test_a_grid_is_optimised_saved_with_the_model_and_used(command, digits, tmp_path):
    folder = saved(filled(DIGITS), tmp_path / "model")
    options = ["--nfe", 3, "--images", 6, "--reference", 12, "--rounds", 2]
    out = command("evaluate", "grid", folder, *options)
    first = (folder / "grids.json").read_text()
    found, own = map(float, re.search(r"solution ([\d.]+); on two_ended ([\d.]+)", out).groups())
    assert found < own
    (folder / "grids.json").unlink()
    command("evaluate", "grid", folder, *options)
    assert (folder / "grids.json").read_text() == first
    common = ["sample", folder, "--images", 4, "--out", tmp_path / "a.npz", "--solver", "ode", "--grid", "optimised"]
    command(*common, "--nfe", 3)
    ((by_setting,),) = [list(json.loads(first).values())]
    record = json.loads((tmp_path / "a.npz.json").read_text())
    assert record["grid"] == by_setting["ode, 3 steps"]
    assert "none for these weights, ode and 4 steps" in command(*common, "--nfe", 4, rc=2)
    assert "a grid has two steps or more" in command("evaluate", "grid", folder, "--nfe", 1, rc=2)


def test_a_users_times(command, model, tmp_path):
    """From the command line as from a file."""
    (tmp_path / "times.txt").write_text("1 0.6 0.2 0")
    for name, grid in (("a", "1,0.6,0.2,0"), ("b", tmp_path / "times.txt")):
        command("sample", model, "--images", 5, "--grid", grid, "--out", tmp_path / f"{name}.npz")
    assert np.array_equal(*(images_of(tmp_path / f"{name}.npz") for name in "ab"))
    assert json.loads((tmp_path / "b.npz.json").read_text())["grid"] == [1, 0.6, 0.2, 0]
