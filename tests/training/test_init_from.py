"""A run that starts from another model's weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from checkpoints import AVERAGE, checkpoint_of, tensors
from conftest import SMALL
from models import filled, saved

from fdtrain.checkpoint.fragments import WEIGHT
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec
from fdtrain.randomness import Purpose, torch_seed
from fdtrain.training import init_from

CLASSES = [str(i) for i in range(10)]
SPEC = ModelSpec("ddpmpp", dict(SMALL["network"]), "bounded", 1 / 17, 1, 8, 17, "digits")
LABELLED = replace(SPEC, classes=CLASSES)
STILL = ["training.lr=1e-300", "training.steps=2", "monitor.evaluate_every=null"]
"""Steps that move no weight."""


def weights(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.fixture
def colour(tmp_path) -> Model:
    """A model of colour images without labels, with another predictor; saved in ``colour``."""
    model = filled(replace(SPEC, channels=3, levels=256, predictor="plain", dataset="photographs"))
    saved(model, tmp_path / "colour")
    return model


def test_another_data_set_and_labels(launch, refused, colour, tmp_path):
    """What fits starts as it is there, the rest as without; both are told, and written once. Then the run resumes
    without the model that it began with."""
    source = tmp_path / "colour"
    settings = [*STILL, "network.class_conditional=true", f"training.init_from={source}"]
    result = launch(*settings, processes=0)
    torch.manual_seed(torch_seed(0, Purpose.INIT))
    fresh, given = weights(Model(LABELLED)), weights(colour)
    shaped = {"network.input.weight", "network.output.2.weight", "network.output.2.bias"}
    found = tensors(launch.checkpoint(2))
    for name, initial in fresh.items():
        kept = name in shaped or "label" in name
        assert torch.equal(found[f"{WEIGHT}/{name}"], initial if kept else given[name]), name
        assert torch.equal(found[f"{AVERAGE}/{name}"], found[f"{WEIGHT}/{name}"]), name

    report = json.loads((launch.run_folder() / "init_from.json").read_text())
    assert report["left"]["network.embed_label.weight"] == "new"
    assert report["left"]["network.input.weight"] == "[8, 3, 3, 3] there, [8, 1, 3, 3] here"
    assert report["left"].keys() == shaped | {"network.embed_label.weight"}
    assert sorted([*report["matched"], *report["left"]]) == sorted(fresh)
    told = f"training.init_from: {len(fresh) - 4} of {len(fresh)} tensors start as they are in {source}"
    assert told in result.stderr

    shutil.rmtree(source)
    result = launch(*settings, "training.steps=3", processes=0, resume=True)
    assert "training.init_from" not in result.stderr
    assert json.loads((launch.run_folder() / "init_from.json").read_text()) == report
    message = refused(*settings, "training.init_from=elsewhere", resume="auto")
    assert f"training.init_from '{source}' against 'elsewhere'" in message


def test_every_rank_and_stage_starts_alike(launch, tmp_path):
    """From a checkpoint in three parts."""
    model = filled(SPEC)
    checkpoint = checkpoint_of(tmp_path / "other", model, parts=3)
    launch(*STILL, f"training.init_from={checkpoint}", "name=one", processes=0)
    for stage in (2, 3):
        name = f"stage{stage}"
        settings = [f"training.init_from={tmp_path / 'other'}", f"training.zero_stage={stage}", f"name={name}"]
        launch(*STILL, *settings, processes=2)
        found = tensors(launch.checkpoint(2, name), WEIGHT)
        for parameter, weight in weights(model).items():
            assert torch.equal(found[f"{WEIGHT}/{parameter}"], weight), parameter
        # Those of the network itself, beside the optimiser's.
        assert launch.losses(name) == pytest.approx(launch.losses("one"), rel=1e-5)


def test_labels_are_taken_over_if_they_are_the_same(tmp_path):
    folder = saved(filled(LABELLED), tmp_path / "labelled")
    label = "network.embed_label.weight"
    assert label in init_from.read(folder, LABELLED)[1]["matched"]
    other = init_from.read(folder, replace(SPEC, classes=CLASSES[::-1]))[1]
    assert other["left"] == {label: "other classes"}
    assert init_from.read(folder, SPEC)[1]["unused"] == [label]
    guided = init_from.read(folder, replace(LABELLED, null_class=True))[1]
    assert guided["left"] == {label: "[10, 32] there, [11, 32] here"}


def options(**changes) -> ModelSpec:
    return replace(SPEC, network_options={**SPEC.network_options, **changes})


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (options(channels=16), "network.channels 8, here 16"),
        (options(blocks=2, multipliers=[2, 2]), "network.multipliers [1, 1], here [2, 2]; network.blocks 1, here 2"),
        (replace(SPEC, network="vdm", network_options={}), "network.name 'ddpmpp', here 'vdm'"),
    ],
)
def test_another_architecture(tmp_path, spec, part):
    folder = saved(filled(SPEC), tmp_path / "export")
    with pytest.raises(UserError, match=r"training\.init_from: .* has another architecture: ") as error:
        init_from.read(folder, spec)
    assert part in str(error.value)


def test_what_says_nothing_of_the_layers_may_differ(tmp_path):
    folder = saved(filled(SPEC), tmp_path / "export")
    report = init_from.read(folder, options(attention=[8], dropout=0.5, time_embedding="fourier"))[1]
    assert {reason for name, reason in report["left"].items() if "qkv" in name} == {"new"}
    assert any("qkv" in name for name in report["unused"])
    assert report["left"]["network.embed.0.weight"] == "[32, 8] there, [32, 16] here"


def test_what_cannot_be_opened_or_is_not_finite(tmp_path):
    """As any model (evaluation/test_load.py)."""
    with pytest.raises(UserError, match=r"training\.init_from: .*no folder "):
        init_from.read(tmp_path / "nowhere", SPEC)
    model = filled(SPEC)
    model.network.input.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"export are not finite\."):
        init_from.read(saved(model, tmp_path / "export"), SPEC)


def test_a_mistake_ends_the_run_before_it_begins(launch, refused, colour, tmp_path):
    message = refused(f"training.init_from={tmp_path / 'colour'}", "network.channels=16")
    assert "has another architecture: network.channels 8, here 16" in message
    assert list(launch.run_folder().iterdir()) == []
