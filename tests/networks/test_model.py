import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from models import DIGITS, filled
from safetensors.torch import save_file

from fdtrain.diffusion.predictors import eps_hat
from fdtrain.errors import UserError
from fdtrain.networks.model import Model, ModelSpec, load_weights

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)

SPEC = replace(DIGITS, predictor="bounded", scale=0.1)


def test_field_takes_the_network_s_precision_and_returns_float32():
    model = Model(SPEC)
    x = torch.randn(2, 1, 8, 8)
    assert model(x, ENDS).dtype == torch.float32
    assert model.double()(x.double(), ENDS).dtype == torch.float64


def test_spec_round_trip_and_differences(tmp_path):
    SPEC.save(tmp_path / "model.json")
    assert ModelSpec.load(tmp_path / "model.json") == SPEC
    other = replace(SPEC, scale=0.2)
    assert SPEC.differences(other) == ["scale 0.1 against 0.2"]


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1}', '{"version": 1, "x": 2}'])
def test_broken_specs(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"model\.json does not describe a model"):
        ModelSpec.load(path)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"version": 99}, "version 99, this fdtrain reads 1"),
        ({"network": "unet"}, "no network 'unet'; there are ddpmpp"),
        # Its 've' was of half the published range of noise.
        ({"network_time": "ve"}, r"no network_time 've'; there are t, .* earlier fdtrain"),
    ],
)
def test_specs_of_another_version(tmp_path, changed, part):
    replace(SPEC, **changed).save(tmp_path / "model.json")
    with pytest.raises(UserError, match=part):
        ModelSpec.load(tmp_path / "model.json")


def test_weights_that_do_not_fit(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="another network"):
        load_weights(SPEC, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 4)
    with pytest.raises(UserError, match="cannot read weights"):
        load_weights(SPEC, tmp_path / "w.safetensors")


def test_a_description_that_does_not_say_whether_the_input_is_added_has_nothing_added(tmp_path):
    content = asdict(replace(SPEC, predictor="eps", interval=[0.1, 0.9], network_skip=True))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.8], dtype=torch.float64)
    for skip, expected in ((True, x), (False, torch.zeros_like(x))):
        if not skip:
            del content["network_skip"]
        (tmp_path / "model.json").write_text(json.dumps(content))
        # An untrained network puts out 0.
        F = Model(ModelSpec.load(tmp_path / "model.json"))(x, t)
        torch.testing.assert_close(eps_hat(F, x, t), expected, rtol=1e-5, atol=1e-5)


LABELLED = replace(SPEC, classes=["a", "b", "c"], null_class=True)


def test_guidance_is_linear_between_none_and_the_label():
    model, x, label = filled(LABELLED), torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    given = model(x, ENDS, label)
    without = model(x, ENDS, torch.full((2,), LABELLED.null_label))
    assert (given - without).abs().max() > 1e-3
    for w, expected in ((1, given), (0, without), (2.5, without + 2.5 * (given - without))):
        assert torch.allclose(model.field(label, w)(x, ENDS), expected, atol=1e-5)


def test_guidance_of_a_model_that_has_no_null_class_is_refused():
    for spec, label in ((replace(LABELLED, null_class=False), torch.tensor([0, 2])), (SPEC, None)):
        with pytest.raises(UserError, match=r"network\.label_dropout"):
            filled(spec).field(label, 2.0)


def test_a_model_of_before_keeps_its_features():
    """Those of the network's image, the same at every time; a description that does not say has them."""
    options = {"channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "fourier_features": 2}
    spec = replace(SPEC, predictor="edm", network="ddpmpp", network_options=options)
    model, x, t = filled(spec), torch.randn(2, 1, 8, 8), torch.tensor([0.01, 0.9], dtype=torch.float64)
    image, time = model.predictor.inputs(x, t)
    waves = [wave(w * image) for wave in (torch.sin, torch.cos) for w in (math.pi * 17, math.pi * 17 / 2)]
    f = model.network(torch.cat([image, *waves], 1), time.float())
    assert torch.equal(model(x, t), model.predictor.field(f, x, t))
    faded = replace(spec, network_options=options | {"fourier_fading": True})
    assert not torch.allclose(filled(faded)(x, t), model(x, t), atol=1e-3)
