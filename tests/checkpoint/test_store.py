"""Checkpoints on the disk: complete or absent, sound or passed over, kept or deleted."""

import json
import shutil

import pytest
import torch

from fdtrain.checkpoint import store
from fdtrain.checkpoint.fragments import AVERAGE, Fragment, part_name, write_part
from fdtrain.checkpoint.store import State
from fdtrain.errors import UserError
from fdtrain.evaluation.load import find_model, load_model
from fdtrain.networks.model import Model, ModelSpec

SPEC = ModelSpec(
    network="ddpmpp",
    network_options={"channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "dropout": 0.0},
    predictor="bounded",
    scale=0.1,
    channels=1,
    size=4,
    levels=17,
    dataset="digits",
    classes=[],
    null_class=False,
)
SETTINGS = {"dataset": "digits", "seed": 0}
FILES = ("part_00000.safetensors", "part_00001.safetensors", "model.json", "config.yaml", "state.json", "MANIFEST.json")


def write_checkpoint(run, step: int):
    """As a run of two ranks would."""
    aside = run / "checkpoints" / store.aside_name(step)
    aside.mkdir(parents=True)
    store.describe(aside, SPEC, "name: run\n", State(step, 32 * step, 2, 1, [0.0], 0, 0, {}, SETTINGS, None))
    names = [part_name(rank) for rank in range(2)]
    pieces = [Fragment(AVERAGE, n, 0, p.detach().flatten()) for n, p in Model(SPEC).named_parameters()]
    for name, part in zip(names, (pieces[::2], pieces[1::2]), strict=True):
        store.note_digest(aside / name, write_part(aside / name, part))
    return store.commit(aside, names)


def fits(path):
    store.check_fits(path, SPEC, SETTINGS)


@pytest.fixture
def run(tmp_path):
    for step in (5, 10):
        write_checkpoint(tmp_path, step)
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    # In a checksum of the manifest, in the numbers of a part.
    at = data.rfind(b'"sha256": "') + 20 if path.suffix == ".json" and b"sha256" in data else len(data) - 5
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, empty, flip, lambda path: path.unlink()])
def test_any_damage_to_any_file_is_found_and_passed_over(run, name, damage, caplog):
    newest, older = store.committed(run)
    assert store.newest(run, fits) == (newest, [])
    damage(newest / name)
    found, faults = store.newest(run, fits)
    assert found == older
    assert len(faults) == 1
    assert faults[0].startswith("step_00000010: ")
    # A checksum that was changed looks like a change of the file that it is of.
    assert name in faults[0] or (name == "MANIFEST.json" and "is cut short or changed" in faults[0])
    # Evaluation takes the sound one, and says so; the damaged one by its own name is refused.
    assert find_model(run)[0].parent == older
    assert "step_00000010 is damaged" in caplog.text
    with pytest.raises(UserError, match=r"step_00000010 is damaged|holds no model"):
        find_model(newest)


def test_another_version_another_model_another_data_set_are_passed_over(run):
    newest, older = store.committed(run)
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    (newest / "MANIFEST.json").write_text(json.dumps({**manifest, "version": 99}))
    assert store.newest(run, fits) == (older, ["step_00000010: its version is 99, this fdtrain reads 1"])
    with pytest.raises(UserError, match="holds another model than the configuration: size 4 against 8"):
        store.check_fits(older, ModelSpec(**{**SPEC.__dict__, "size": 8}), SETTINGS)
    other = {**SETTINGS, "dataset": "cifar10"}
    with pytest.raises(UserError, match="belongs to a run with other settings: dataset 'digits' against 'cifar10'"):
        store.check_fits(older, SPEC, other)
    found, faults = store.newest(run, lambda path: store.check_fits(path, SPEC, other))
    assert found is None
    assert len(faults) == 2


def test_a_manifest_that_leaves_files_out_is_a_fault(run):
    newest = store.committed(run)[0]
    (newest / "MANIFEST.json").write_text(json.dumps({"version": 1, "files": {}}))
    assert store.fault(newest) == "MANIFEST.json does not list all files"


@pytest.mark.parametrize("content", ["step_00000099\n", "", "../../etc", None])
def test_latest_may_point_nowhere(run, content):
    latest = run / "checkpoints" / "latest"
    assert latest.read_text() == "step_00000010\n"
    latest.unlink()
    if content is not None:
        latest.write_text(content)
    assert store.newest(run, fits)[0].name == "step_00000010"
    assert find_model(run)[0].parent.name == "step_00000010"


def test_what_an_interrupted_save_leaves_is_no_checkpoint(run):
    aside = run / "checkpoints" / store.aside_name(15)
    shutil.copytree(store.committed(run)[0], aside)
    assert store.newest(run, fits)[0].name == "step_00000010"
    store.clean(run)
    assert not aside.exists()
    assert len(store.committed(run)) == 2


def test_a_part_that_never_comes_into_sight_ends_the_commit(run, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    aside = run / "checkpoints" / store.aside_name(15)
    aside.mkdir()
    store.describe(aside, SPEC, "", State(15, 0, 1, 1, [0.0], 0, 0, {}, SETTINGS, None))
    with pytest.raises(OSError, match="not on a file system that all hosts share"):
        store.commit(aside, [part_name(0)])
    assert store.newest_step(run).name == "step_00000010"


def test_the_average_is_what_evaluation_loads(run):
    newest = store.committed(run)[0]
    model = load_model(newest)
    assert model.spec == SPEC
    again = load_model(run)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_retention_by_count_and_by_interval(tmp_path):
    for step in range(1, 9):
        write_checkpoint(tmp_path, step)
    store.retain(tmp_path, 2, 3)
    assert [store.step_of(path) for path in store.committed(tmp_path)] == [8, 7, 6, 3]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_run_without_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert store.newest(tmp_path, fits) == (None, [])
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        find_model(tmp_path)
