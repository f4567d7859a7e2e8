import pytest
import torch

from fdtrain.config import load_config
from fdtrain.errors import UserError
from fdtrain.networks.ddpmpp import DDPMpp
from fdtrain.networks.model import Model, ModelSpec, load_weights, parameter_count

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(("blocks", "published"), [(4, 61_804_419), (8, 106_632_579)])
def test_parameter_count_is_the_published_one(blocks, published):
    """DDPM++ cont. and DDPM++ cont. (deep) as score_sde_pytorch builds them at 32x32x3: 61.8 M and 106.6 M."""
    with torch.device("meta"):
        assert parameter_count(DDPMpp(3, 32, 256, blocks=blocks)) == published


def test_fourier_times_widen_one_layer():
    """NCSN++'s embedding: 256 features of the time in place of 128."""
    with torch.device("meta"):
        assert parameter_count(DDPMpp(3, 32, 256, time_embedding="fourier")) == 61_804_419 + 128 * 512


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        DDPMpp(1, 12, 17, multipliers=(1, 1, 1, 1))


SPEC = ModelSpec(
    network="ddpmpp",
    network_options={"channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
    predictor="bounded",
    scale=0.1,
    channels=1,
    size=8,
    levels=17,
    dataset="digits",
)


def test_field_takes_the_network_s_precision_and_returns_float32():
    model = Model(SPEC)
    x = torch.randn(2, 1, 8, 8)
    assert model(x, ENDS).dtype == torch.float32
    assert model.double()(x.double(), ENDS).dtype == torch.float64


def test_spec_round_trip_and_differences(tmp_path):
    SPEC.save(tmp_path / "model.json")
    assert ModelSpec.load(tmp_path / "model.json") == SPEC
    other = ModelSpec(**{**SPEC.__dict__, "scale": 0.2})
    assert SPEC.differences(other) == ["scale 0.1 against 0.2"]


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1}', '{"version": 99}', '{"version": 1, "x": 2}'])
def test_broken_specs(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"model\.json"):
        ModelSpec.load(path)


def test_weights_that_do_not_fit(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="another network"):
        load_weights(SPEC, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 4)
    with pytest.raises(UserError, match="cannot read weights"):
        load_weights(SPEC, tmp_path / "w.safetensors")


def test_cifar10_configuration_builds_the_published_network():
    from fdtrain.data.dataset import VERSION, Description
    from fdtrain.preparation import model_spec

    config = load_config("configs/cifar10.yaml")
    description = Description(
        version=VERSION,
        name="cifar10",
        source="",
        size=32,
        channels=3,
        levels=256,
        classes=[],
        encoding="png",
        splits={},
    )
    with torch.device("meta"):
        assert parameter_count(Model(model_spec(config, description))) == 61_804_419
