"""What makes a run the same run when it resumes, in real runs."""

import json

import pytest
from test_bad_input import error_of
from test_store import change_state

from fdtrain.checkpoint import store
from fdtrain.data.pack import pack_digits


@pytest.mark.parametrize("form", ["path", "mixture"])
def test_a_run_does_not_resume_on_shards_that_were_packed_again(launch, digits, tmp_path, form):
    """The same images under the same name, but in another order: it would be another run."""
    again = tmp_path / "again"
    pack_digits(again, shard_images=50)

    def data(folder):
        parts = json.dumps([{"path": str(digits), "weight": 1}, {"path": str(folder), "weight": 1}])
        return [f"data.path={folder}"] if form == "path" else ["data.path=null", f"data.mixture={parts}"]

    launch(*data(digits), processes=0)
    message = error_of(launch(*data(again), "training.steps=8", processes=0, resume=True, rc=2))
    assert "belongs to a run on other shards: the data set has been packed again or changed" in message
    result = launch(*data(digits), "training.steps=8", processes=0, resume=True)
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
