"""The data that a run has recorded, for its evaluation."""

import pytest
import yaml
from packed import pack

from fdtrain.data.dataset import write_description
from fdtrain.errors import UserError
from fdtrain.evaluation.run_folder import open_split


@pytest.fixture
def run(tmp_path):
    """A run on 16 images in 'train', with a checkpoint, by its record alone."""
    folder = tmp_path / "runs" / "x"
    (folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    write_description(folder, pack(tmp_path / "data"))
    record(folder, path=str(tmp_path / "data"), test_split=None)
    return folder


def record(folder, **data):
    settings = {"train_split": "train", "test_split": "test", "mixture": []} | data
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "x", "data": settings}))


def test_the_run_says_where_its_data_are(run, tmp_path):
    for model in (run, run / "checkpoints" / "step_00000001", str(run)):
        assert len(open_split(model, None, None, "train")) == 16
    record(run, path=str(tmp_path / "data"), test_split="train")
    assert open_split(run, None, None).name == "train"
    record(run, path=None, mixture=[{"path": str(tmp_path / "data"), "weight": 2}], test_split="train")
    assert len(open_split(run, None, None)) == 16


def said(*arguments):
    with pytest.raises(UserError) as error:
        open_split(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_had_says_what_to_do(run, tmp_path):
    assert "without held-out images (data.test_split: null). Name a split with --split" in said(run, None, None)
    assert "is no run" in said(tmp_path / "data", None, None)
    assert "Name a packed data set with --data" in said(None, None, None)
    record(run, path=str(tmp_path / "data"))
    assert "has no split 'test'" in said(run, None, None)


def test_data_that_moved_or_changed_are_never_taken_for_the_runs(run, tmp_path):
    (tmp_path / "data").rename(tmp_path / "moved")
    assert "no folder" in said(run, None, "train")
    assert "name their present place with --data" in said(run, None, "train")
    assert len(open_split(run, str(tmp_path / "moved"), "train")) == 16
    pack(tmp_path / "data", first=100)
    assert "was packed again" in said(run, None, "train")
    assert len(open_split(run, str(tmp_path / "data"), "train")) == 16


@pytest.mark.parametrize("content", ["", "data: {path: 3", "data: {mixture: [5]}"])
def test_a_damaged_record_is_named(run, content):
    (run / "config.yaml").write_text(content)
    message = said(run, None, "train")
    assert "config.yaml does not say what the run was trained on" in message
