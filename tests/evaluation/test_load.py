"""Models in checkpoints that were written in parts."""

import json
from dataclasses import asdict

import pytest
import torch
from models import DIGITS

from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import AVERAGE, WEIGHT, Fragment, part_name, write_part
from fdtrain.errors import UserError
from fdtrain.evaluation.load import export, load_model
from fdtrain.evaluation.reporting import result
from fdtrain.networks.model import Model


def checkpoint_of(run, model, parts, kind=AVERAGE):
    """A checkpoint whose average is cut over so many parts."""
    folder = run / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    files = {}
    for rank in range(parts):
        fragments = []
        for name, weight in model.named_parameters():
            flat = weight.detach().flatten()
            start, stop = (len(flat) * r // parts for r in (rank, rank + 1))
            fragments.append(Fragment(kind, name, start, flat[start:stop].clone()))
        files[part_name(rank)] = write_part(folder / part_name(rank), fragments)
    DIGITS.save(folder / store.MODEL_FILE)
    counters = store.Counters(0.0, {}, (0.0, 0.0))
    state = store.State(7, 0, parts, 0, [0.0], 0, 0, counters, {}, None)
    (folder / store.STATE_FILE).write_text(json.dumps(asdict(state)))
    for name in (store.MODEL_FILE, store.STATE_FILE):
        files[name] = store.manifest_entry(folder / name)
    manifest = {"version": store.VERSION, "files": files}
    (folder / store.MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(DIGITS)


def test_one_model_has_one_checksum_however_it_lies_on_the_disk(model, tmp_path):
    checkpoint_of(tmp_path / "one", model, 1)
    folder = checkpoint_of(tmp_path / "three", model, 3)
    export(tmp_path / "three", tmp_path / "export")
    found = [result.open_model(path)[1] for path in (tmp_path / "one", tmp_path / "three", folder, tmp_path / "export")]
    assert len({subject.sha256 for subject in found}) == 1
    assert [subject.step for subject in found] == [7, 7, 7, None]
    assert [subject.run for subject in found] == [tmp_path / "one", tmp_path / "three", None, None]
    for weight in model.parameters():
        weight.data += 1
    checkpoint_of(tmp_path / "other", model, 1)
    assert result.open_model(tmp_path / "other")[1].sha256 != found[0].sha256


def test_a_checkpoint_without_its_average(model, tmp_path):
    checkpoint_of(tmp_path, model, 2, kind=WEIGHT)
    with pytest.raises(UserError, match=r"step_00000007 lacks elements 0 to \d+ of average of .*: parts are missing"):
        load_model(tmp_path)


def test_a_damaged_average_is_named(model, tmp_path):
    folder = checkpoint_of(tmp_path, model, 2)
    path = folder / part_name(1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"is damaged: part_00001.safetensors is cut short or changed"):
        result.open_model(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"is damaged: part_00001.safetensors is missing"):
        result.open_model(tmp_path)
