import pytest
import torch
from test_bad_input import error_of

from fdtrain.capacity.layout import run_layout
from fdtrain.config import Config
from fdtrain.errors import UserError
from fdtrain.training.memory import evaluation_memory, training_memory


def config(**training):
    training = {"steps": 1, "lanes": 64, **training}
    return Config.model_validate({"name": "x", "data": {"path": "d"}, "training": training})


def layout():
    return run_layout(config().training, 1)


def test_an_allocation_that_the_cpu_refuses():
    with pytest.raises(UserError) as error, training_memory(config(), layout()):
        torch.empty(2**50)
    message = str(error.value)
    assert "128 images does not fit the memory of this machine, which was asked for 4194304.0 GiB more" in message
    assert "training.micro_batch to a multiple of 2 below 128" in message
    one = config(lanes=128)
    below = pytest.raises(UserError, match=r"set training\.micro_batch below 128, or")
    with below, training_memory(one, run_layout(one.training, 1)):
        torch.empty(2**50)
    assert "network.checkpointing to true" in message
    assert "\n" not in message


def cuda_error():
    return torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB"
    )


@pytest.mark.parametrize(
    ("raised", "part"),
    [
        (cuda_error(), "asked for 20.00 GiB more"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "asked for 7.28 TiB more"),
        (RuntimeError("not enough memory: you tried to allocate 2147483648 bytes."), "asked for 2.0 GiB more"),
        (MemoryError(), "does not fit the memory of this machine; "),
    ],
)
def test_what_else_refuses(raised, part):
    with pytest.raises(UserError, match=part), training_memory(config(), layout()):
        raise raised


def test_what_would_take_less():
    settings = config(micro_batch=2, zero_stage=1)
    with pytest.raises(UserError) as error, training_memory(settings, run_layout(settings.training, 2)):
        raise cuda_error()
    assert "a pass of 2 images" in str(error.value)
    assert "raise training.lanes" in str(error.value)
    assert "raise training.zero_stage above 1" in str(error.value)


def test_an_evaluation_that_does_not_fit_is_not_called_a_training_pass():
    with (
        pytest.raises(UserError) as error,
        training_memory(config(), layout()),
        evaluation_memory(2),
    ):
        raise cuda_error()
    message = str(error.value)
    assert "an evaluation beside the training, in float32 and of up to 2 images at a time, does not fit" in message
    assert "lower training.micro_batch" in message
    assert "set monitor.evaluate_every, monitor.sample_every and monitor.frechet_every to null" in message
    assert "a pass of" not in message


def test_other_errors_keep_their_trace():
    with pytest.raises(RuntimeError, match="shapes"), training_memory(config(), layout()):
        raise RuntimeError("shapes do not match")


def test_every_rank_ends_with_one_line(launch):
    """A network of terabytes."""
    message = error_of(launch("network.channels=1000000", processes=2, rc=2))
    assert "does not fit the memory of this machine" in message
    assert "choose a smaller network" in message
