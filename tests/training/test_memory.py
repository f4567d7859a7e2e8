import pytest
import torch
from conftest import error_of

from fdtrain.errors import UserError
from fdtrain.training.memory import EVALUATION, TRAINING, fitting


def full(amount):
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {amount}. GPU 0 has a total of 79 GiB")


@pytest.mark.parametrize(
    ("raised", "part"),
    [
        (full("20.00 GiB"), "memory of this machine, which was asked for 20.00 GiB more; lower training.micro_batch"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "asked for 7.28 TiB more"),
        (RuntimeError("not enough memory: you tried to allocate 2147483648 bytes."), "asked for 2147483648 bytes more"),
        (MemoryError(), "a pass of 2 images does not fit the memory of this machine; "),
    ],
)
def test_what_allocators_say(raised, part):
    with pytest.raises(UserError, match=part), fitting("a pass of 2 images", TRAINING):
        raise raised


def test_an_evaluation_that_does_not_fit_is_not_called_a_training_pass():
    with pytest.raises(UserError) as error, fitting("a pass", TRAINING), fitting("an evaluation", EVALUATION):
        torch.empty(2**50)
    assert str(error.value).startswith("an evaluation does not fit the memory of this machine, which was asked for ")
    assert "set monitor.evaluate_every" in str(error.value)


def test_other_errors_keep_their_trace():
    with pytest.raises(RuntimeError, match="shapes"), fitting("a pass", TRAINING):
        raise RuntimeError("shapes do not match")


def test_every_rank_ends_with_one_line(launch):
    """A network of terabytes."""
    message = error_of(launch("network.channels=1000000", processes=2, rc=2).stderr)
    assert "a pass of 16 images does not fit the memory of this machine" in message
    assert "choose a smaller network" in message
