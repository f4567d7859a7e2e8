"""Models in checkpoints that were written in parts."""

import pytest
import torch
from checkpoints import checkpoint_of
from models import DIGITS

from fdtrain.checkpoint.fragments import WEIGHT
from fdtrain.errors import UserError
from fdtrain.evaluation.load import load_model, open_model
from fdtrain.export.write import export
from fdtrain.networks.model import Model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(DIGITS)


def test_one_model_has_one_checksum_however_it_lies_on_the_disk(model, tmp_path):
    checkpoint_of(tmp_path / "one", model, 1)
    folder = checkpoint_of(tmp_path / "three", model, 3)
    export(tmp_path / "three", tmp_path / "export")
    found = [open_model(path)[1] for path in (tmp_path / "one", tmp_path / "three", folder, tmp_path / "export")]
    assert len({origin.sha256 for origin in found}) == 1
    assert [origin.step for origin in found] == [7, 7, 7, None]
    assert [origin.run for origin in found] == [tmp_path / "one", tmp_path / "three", None, None]
    for weight in model.parameters():
        weight.data += 1
    checkpoint_of(tmp_path / "other", model, 1)
    assert open_model(tmp_path / "other")[1].sha256 != found[0].sha256


def test_a_checkpoint_without_its_average(model, tmp_path):
    checkpoint_of(tmp_path, model, 2, kind=WEIGHT)
    with pytest.raises(UserError, match=r"step_00000007 lacks elements 0 to \d+ of average of .*: parts are missing"):
        load_model(tmp_path)
