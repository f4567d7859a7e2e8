"""What makes a run the same run when it resumes, in real runs."""

import json

from checkpoints import change_state
from test_bad_input import error_of

from fdtrain.checkpoint import store
from fdtrain.data.pack import pack_digits


def test_a_run_does_not_resume_on_shards_that_were_packed_again(launch, digits, tmp_path):
    """The same images under the same name, but in another order: it would be another run."""
    again = tmp_path / "again"
    pack_digits(again, shard_images=50)
    parts = [[{"path": str(digits), "weight": 1}, {"path": str(folder), "weight": 1}] for folder in (digits, again)]
    same, other = ([f"data.mixture={json.dumps(part)}", "data.path=null"] for part in parts)
    launch(*same, "checkpoint.every=3", processes=0)
    # Nor from an older checkpoint, of a version that did not record them.
    change_state(launch.checkpoint(3), lambda state: state["run"].pop(store.SHARDS))
    message = error_of(launch(*other, "training.steps=8", processes=0, resume=True, rc=2).stderr)
    assert "belongs to a run on other shards: the data set has been packed again or changed" in message
    result = launch(*same, "training.steps=8", processes=0, resume=True)
    assert "resuming after step 6 of 8" in result.stderr
    assert "earlier version" not in result.stderr


def test_a_checkpoint_that_records_no_shards_resumes_with_a_warning(launch):
    launch("name=whole", "training.steps=8", processes=0)
    launch(processes=0)
    change_state(launch.checkpoint(6), lambda state: state["run"].pop(store.SHARDS))
    result = launch("training.steps=8", processes=0, resume=True)
    assert "warning: step_00000006 is of an earlier version, which did not record the shards" in result.stderr
    assert launch.losses() == launch.losses("whole")
    assert store.read_state(launch.checkpoint(8)).run[store.SHARDS]


def test_what_changes_is_said_and_what_would_be_another_method_is_refused(launch):
    launch("training.lr=1e-3", processes=0)
    allowed = ["training.lr=1e-4", "training.betas=[0.9, 0.99]", "training.decay=linear", "training.steps=8"]
    for setting in ("data.flip=true", "ema.decay=0.99", "diffusion.weighting=eps", "diffusion.time_sampling=iid"):
        message = error_of(launch(*allowed, setting, processes=0, resume=True, rc=2).stderr)
        key, _, value = setting.partition("=")
        assert f"step_00000006 belongs to a run with other settings: {key} " in message
        assert f" against {value.capitalize() if value == 'true' else value}" in message.replace("'", "")
    # Of a version that recorded less, the configuration beside it counts.
    change_state(launch.checkpoint(6), lambda state: state["run"].pop("data.flip"))
    assert "data.flip False against True" in error_of(launch("data.flip=true", processes=0, resume=True, rc=2).stderr)
    said = launch(*allowed, processes=0, resume=True).stderr
    assert [line for line in said.splitlines() if "changed since" in line] == [
        "fdtrain: changed since step_00000006: training.steps was 6, is 8",
        "fdtrain: changed since step_00000006: training.lr was 0.001, is 0.0001",
        "fdtrain: changed since step_00000006: training.decay was 'constant', is 'linear'",
        "fdtrain: changed since step_00000006: training.betas was [0.9, 0.999], is [0.9, 0.99]",
    ]
