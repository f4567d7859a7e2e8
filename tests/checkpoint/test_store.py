"""Checkpoints on the disk: complete or absent, sound or passed over, kept or deleted."""

import json
import shutil
from dataclasses import replace

import checkpoints
import pytest
import torch
from checkpoints import change_state, rewrite

from fdtrain.checkpoint import retention, soundness, store
from fdtrain.checkpoint.fragments import AVERAGE, FIRST_MOMENT, SECOND_MOMENT, WEIGHT, Fragment, part_name
from fdtrain.errors import UserError
from fdtrain.evaluation.load import find_model, load_model
from fdtrain.networks.model import Model, ModelSpec

OPTIONS = {"channels": 8, "multipliers": [1], "blocks": 1, "attention": []}
SPEC = ModelSpec("ddpmpp", OPTIONS, "bounded", 0.1, 1, 4, 17, "digits")
SETTINGS = {"dataset": "digits", "seed": 0}
FILES = ("part_00000.safetensors", "part_00001.safetensors", "model.json", "config.yaml", "state.json", "MANIFEST.json")


def write_checkpoint(run, step: int, skips: int = 0, value: float = 1.0, change=lambda pieces: None):
    """As a run of two ranks would; ``value`` is one element of the average. ``change`` what is written."""
    pieces = [Fragment(AVERAGE, n, 0, p.detach().flatten()) for n, p in Model(SPEC).named_parameters()]
    pieces[0].tensor[0] = value
    change(pieces)
    state = {"skips": skips, "run": SETTINGS}
    return checkpoints.write_checkpoint(run, step, [pieces[::2], pieces[1::2]], SPEC, **state)


def newest_sound(run):
    return soundness.newest(store.committed(run))


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
    assert newest_sound(run) == (newest, [])
    damage(newest / name)
    found, faults = newest_sound(run)
    assert found == older
    assert len(faults) == 1
    assert faults[0].startswith("step_00000010: ")
    # A checksum that was changed looks like a change of the file that it is of.
    assert name in faults[0] or (name == "MANIFEST.json" and "is cut short or changed" in faults[0])
    # Evaluation takes the sound one, and says so; the damaged one by its own name is refused.
    assert find_model(run)[0].parent == older
    assert "damaged: step_00000010" in caplog.text
    with pytest.raises(UserError, match=r"step_00000010 is damaged|holds no model"):
        find_model(newest)


@pytest.mark.parametrize("content", ["step_00000099\n", "step_bestgood\n", "../other/step_00000099", None])
def test_latest_may_point_nowhere(run, content):
    newest = store.committed(run)[0]
    for folder in (run / "other" / "step_00000099", run / "checkpoints" / "step_bestgood"):
        shutil.copytree(newest, folder)
    latest = run / "checkpoints" / "latest"
    assert latest.read_text() == "step_00000010\n"
    latest.unlink() if content is None else latest.write_text(content)
    assert steps(run) == [10, 5]
    assert newest_sound(run)[0] == store.newest_step(run) == find_model(run)[0].parent == newest


def test_what_an_interrupted_save_leaves_is_no_checkpoint(run):
    temporary = run / "checkpoints" / store.temporary_name(15)
    shutil.copytree(store.committed(run)[0], temporary)
    assert steps(run) == [10, 5]
    store.clean(run)
    assert not temporary.exists()
    assert steps(run) == [10, 5]


def test_a_part_that_never_comes_into_sight_ends_the_commit(run, monkeypatch):
    monkeypatch.setattr(store, "VISIBILITY_TIMEOUT_SECONDS", 0.2)
    temporary = run / "checkpoints" / store.temporary_name(15)
    temporary.mkdir()
    store.describe(temporary, SPEC, "", store.read_state(store.committed(run)[0]))
    with pytest.raises(OSError, match="not on a file system that all hosts share"):
        store.commit(temporary, 1)
    assert store.newest_step(run).name == "step_00000010"


def test_retention_by_count_and_by_interval(tmp_path):
    for step in range(1, 9):
        retention.retain(write_checkpoint(tmp_path, step), 2, 3)
    assert steps(tmp_path) == [8, 7, 6, 3]
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("bad", [{"skips": 4}, {"value": float("nan")}, {"value": float("inf")}])
def test_retention_leaves_the_newest_that_a_run_in_trouble_may_return_to(tmp_path, bad):
    """And the one before it, however many bad ones follow."""
    for step in range(1, 5):
        retention.retain(write_checkpoint(tmp_path, step), 1, None)
    for step in range(5, 9):
        written = write_checkpoint(tmp_path, step, **bad)
        assert soundness.trouble(written) is not None
        retention.retain(written, 1, None)
        assert steps(tmp_path) == [step, 4, 3]
    # With sound ones after them the old ones go.
    for step in (9, 10):
        retention.retain(write_checkpoint(tmp_path, step), 1, None)
    assert steps(tmp_path) == [10, 9]


def test_retention_spares_what_was_just_written(tmp_path):
    """A resumed run has passed over later checkpoints, which are damaged: its own come and go beneath them."""
    for step in (5, 10, 30, 40):
        write_checkpoint(tmp_path, step)
    for step in (12, 14):
        retention.retain(write_checkpoint(tmp_path, step), 1, None)
    assert steps(tmp_path) == [40, 30, 14, 12]
    assert store.newest_step(tmp_path).name == "step_00000014"


def test_nothing_is_later_than_where_a_run_returns_to(tmp_path):
    for step in (5, 10, 15, 20):
        write_checkpoint(tmp_path, step, skips=int(step > 10))
    retention.roll_back_to(store.committed(tmp_path)[2])
    assert steps(tmp_path) == [10, 5]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000010\n"


def steps(run):
    return [store.step_of(path) for path in store.committed(run)]


def assert_weights(model, expected) -> None:
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


def change_manifest(checkpoint, change) -> None:
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    change(manifest)
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_part_that_the_manifest_does_not_list_is_not_opened(run):
    newest, older = store.committed(run)
    expected = load_model(newest).state_dict()
    shutil.copy(older / part_name(1), newest / part_name(2))
    assert newest_sound(run) == (newest, [])
    assert_weights(load_model(newest), expected)


def test_a_checkpoint_may_be_copied_to_a_folder_of_any_name(run):
    assert load_model(shutil.copytree(store.committed(run)[0], run / "best")).spec == SPEC


def with_moments(**values):
    """Weights and moments beside the average; ``values`` are one element of a kind."""

    def change(pieces):
        for kind in (WEIGHT, FIRST_MOMENT, SECOND_MOMENT):
            own = [replace(piece, kind=kind, tensor=piece.tensor.clone()) for piece in pieces if piece.kind == AVERAGE]
            own[0].tensor[0] = values.get(kind, 1.0)
            pieces += own

    return change


@pytest.mark.parametrize(
    "bad",
    [
        {"value": float("nan")},
        {"value": float("inf")},
        {"change": with_moments(exp_avg=float("nan"))},
        {"change": with_moments(exp_avg_sq=float("nan"))},
    ],
)
def test_numbers_that_are_not_finite_are_passed_over(run, bad):
    """A moment that is NaN would make the weights NaN in the next step; one that overflowed only stops its weight."""
    overflown = write_checkpoint(run, 15, change=with_moments(exp_avg_sq=float("inf")))
    write_checkpoint(run, 20, **bad)
    assert newest_sound(run) == (overflown, ["step_00000020: it has numbers that are not finite"])
    assert find_model(run)[0].parent == overflown


def drop_the_end(pieces):
    pieces[0] = replace(pieces[0], tensor=pieces[0].tensor[:-1])


def drop_the_beginning(pieces):
    pieces[0] = replace(pieces[0], start=1, tensor=pieces[0].tensor[1:])


def drop_the_last_of(kind):
    def change(pieces):
        with_moments()(pieces)
        pieces.remove([piece for piece in pieces if piece.kind == kind][-1])

    return change


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (drop_the_end, AVERAGE),
        (drop_the_beginning, AVERAGE),
        *((drop_the_last_of(kind), kind) for kind in (AVERAGE, WEIGHT, SECOND_MOMENT)),
        (list.clear, None),
    ],
)
def test_a_checkpoint_that_lacks_fragments_is_passed_over(run, change, kind):
    """Its files are as they were written."""
    write_checkpoint(run, 15, change=change)
    found, faults = newest_sound(run)
    assert found.name == "step_00000010"
    what = f"elements of {kind} of " if kind else "all elements"
    assert len(faults) == 1
    assert faults[0].startswith(f"step_00000015: it lacks {what}")
    assert find_model(run)[0].parent == found


def change_runs(checkpoint, change) -> None:
    """Each run of the index, of start, size, part and count."""

    def change_index(manifest):
        manifest["fragments"] = {name: [change(*run) for run in runs] for name, runs in manifest["fragments"].items()}

    change_manifest(checkpoint, change_index)


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        # An index that does not fit the parts.
        (lambda path: change_runs(path, lambda *r: (r[0], r[1], 1 - r[2], r[3])), "MANIFEST.json has another index"),
        (lambda path: change_runs(path, lambda *r: (*r[:3], 2**60)), "MANIFEST.json has an index of more parts than"),
        (lambda path: change_runs(path, lambda *r: (r[0], r[1] + 1, *r[2:])), "MANIFEST.json has another index"),
        (lambda path: change_runs(path, lambda *r: (r[0], 0, *r[2:])), "MANIFEST.json cannot be read (fragments."),
        (lambda path: change_runs(path, lambda *r: (r[0], "1", r[2])), "MANIFEST.json cannot be read (fragments."),
        # Descriptions and parts whose checksums agree.
        (lambda path: (path / "MANIFEST.json").write_bytes(DEEP), ""),
        (lambda path: change_manifest(path, lambda manifest: manifest.update(version=99)), ""),
        (lambda path: (path / "MANIFEST.json").write_bytes(b'{"version": 1, "files": {}}'), ""),
        (lambda path: (path / "MANIFEST.json").write_bytes(b'{"version": 1, "files": {"state.json": 3}}'), ""),
        (lambda path: rewrite(path, "../../stray.safetensors", b"", "../../stray.safetensors"), ""),
        (lambda path: rewrite(path, "model.json", DEEP), ""),
        (lambda path: rewrite(path, "state.json", DEEP), ""),
        (lambda path: rewrite(path, "state.json", b'{"step": 10}'), ""),
        (lambda path: rewrite(path, part_name(1), b"junk"), ""),
        (lambda path: rewrite(path, part_name(2), (path / part_name(1)).read_bytes()), ""),
        (lambda path: change_state(path, lambda state: state["counters"].pop("updates")), ""),
        (lambda path: change_state(path, lambda state: state["counters"].update(loss_scale={"scale": 1.0})), ""),
        (lambda path: change_state(path, lambda state: state.update(step=5)), "state.json is of step 5"),
        (lambda path: change_state(path, lambda state: state.update(step="ten")), ""),
        (lambda path: change_state(path, lambda state: state.update(world_size=2**70)), ""),
    ],
)
def test_content_that_does_not_go_together_is_passed_over(run, damage, problem):
    newest, older = store.committed(run)
    damage(newest)
    found, faults = newest_sound(run)
    assert found == older
    assert len(faults) == 1
    assert faults[0].startswith(f"step_00000010: {problem}")
    assert soundness.trouble(older) is None
    if "index" in problem or "fragments" in problem:
        with pytest.raises(UserError, match=r"is damaged: step_00000010: MANIFEST\.json (has|cannot be read) "):
            load_model(newest)


def test_a_checkpoint_of_an_earlier_version_has_no_index(run):
    """Nor does it say whether its numbers are finite."""

    def forget(manifest):
        del manifest["fragments"]
        for entry in manifest["files"].values():
            entry.pop("finite", None)

    newest = store.committed(run)[0]
    expected = load_model(newest).state_dict()
    change_manifest(newest, forget)
    assert newest_sound(run) == (newest, [])
    assert_weights(load_model(newest), expected)
    change_manifest(write_checkpoint(run, 15, value=float("nan")), forget)
    assert newest_sound(run) == (newest, ["step_00000015: it has numbers that are not finite"])
    (newest / part_name(1)).unlink()
    with pytest.raises(UserError, match=r"cannot read .*part_00001"):
        store.open_parts(newest)
