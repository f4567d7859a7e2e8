"""What makes a run the same run when it resumes, in real runs."""

import json

from checkpoints import change_state

from fdtrain.checkpoint import store
from fdtrain.data.pack import pack_digits


def test_a_run_resumes_on_its_own_shards_alone(launch, refused, digits, tmp_path):
    """Others may have the same images under the same name, in another order: it would be another run."""
    again = tmp_path / "again"
    pack_digits(again, shard_images=50)
    parts = [[{"path": str(digits), "weight": 1}, {"path": str(folder), "weight": 1}] for folder in (digits, again)]
    same, other = ([f"data.mixture={json.dumps(part)}", "data.path=null"] for part in parts)
    launch(*same, "checkpoint.every=3", processes=0)
    # Nor from an older checkpoint, of a version that did not record them.
    change_state(launch.checkpoint(3), lambda state: state["run"].pop(store.SHARDS))
    message = refused(*other, resume="auto")
    assert "belongs to a run on other shards: the data set has been packed again or changed" in message
    said = launch(*same, "training.steps=7", processes=0, resume=True).stderr
    assert "resuming after step 6 of 7" in said
    assert "earlier version" not in said
    change_state(launch.checkpoint(7), lambda state: state["run"].pop(store.SHARDS))
    said = launch(*same, "training.steps=8", processes=0, resume=True).stderr
    assert "warning: step_00000007 is of an earlier version, which did not record the shards" in said
    assert store.read_state(launch.checkpoint(8)).run[store.SHARDS]


def test_what_changes_is_said_and_what_would_be_another_method_is_refused(launch, refused):
    launch("training.lr=1e-3", processes=0)
    allowed = ["training.lr=1e-4", "training.betas=[0.9, 0.99]", "training.decay=linear", "training.steps=8"]
    for setting in ("data.flip=true", "ema.decay=0.99", "diffusion.weighting=eps", "diffusion.time_sampling=iid"):
        message = refused(*allowed, setting, resume="auto")
        key, _, value = setting.partition("=")
        assert f"step_00000006 belongs to a run with other settings: {key} " in message
        assert f" against {value.capitalize() if value == 'true' else value}" in message.replace("'", "")
    # Of a version that recorded less, the configuration beside it counts.
    change_state(launch.checkpoint(6), lambda state: state["run"].pop("data.flip"))
    assert "data.flip False against True" in refused("data.flip=true", resume="auto")
    said = launch(*allowed, processes=0, resume=True).stderr
    assert [line for line in said.splitlines() if "changed since" in line] == [
        "fdtrain: changed since step_00000006: training.steps was 6, is 8",
        "fdtrain: changed since step_00000006: training.lr was 0.001, is 0.0001",
        "fdtrain: changed since step_00000006: training.decay was 'constant', is 'linear'",
        "fdtrain: changed since step_00000006: training.betas was [0.9, 0.999], is [0.9, 0.99]",
    ]
