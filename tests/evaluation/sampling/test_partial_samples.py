"""Samples under way: what is there, what is missing."""

import pytest
import torch

from fdtrain.errors import UserError
from fdtrain.evaluation.sampling.partial_samples import PartialSamples


def levels(part):
    return torch.tensor(list(part), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


@pytest.fixture
def parts(tmp_path):
    parts = PartialSamples(tmp_path / "work", {"images": 20, "seed": 1})
    parts.begin()
    return parts


def test_parts_come_back_in_order_whoever_wrote_them(parts):
    for part in (range(16, 20), range(0, 8), range(8, 16)):
        parts.save(part, levels(part))
    assert parts.stored() == [range(0, 8), range(8, 16), range(16, 20)]
    assert torch.cat([found for _, found in parts.load()])[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
def test_whatever_is_missing_is_sampled_once(parts, batch):
    """With another batch size than the parts that are there."""
    there = [range(0, 8), range(10, 13)]
    for part in there:
        parts.save(part, levels(part))
    chunks = parts.missing(batch)
    assert sorted(i for part in (*there, *chunks) for i in part) == list(range(20))
    assert all(0 < len(chunk) <= batch and chunk.start // batch == (chunk.stop - 1) // batch for chunk in chunks)


def test_what_is_not_finished_is_not_there(parts):
    (parts.folder / ".00000000-00000020.npy").write_bytes(b"half of a part")
    assert parts.stored() == []
    assert parts.missing(20) == [range(0, 20)]
    with pytest.raises(UserError, match=r"lacks image 0\. Every node must see the same folder"):
        list(parts.load())


def test_parts_of_something_else(parts, tmp_path):
    assert PartialSamples(parts.folder, {"images": 20, "seed": 1}).differences() == []
    other = PartialSamples(parts.folder, {"images": 20, "seed": 2})
    assert other.differences() == ["seed 1, not 2"]
    parts.save(range(3), levels(range(3)))
    other.begin()
    assert other.stored() == []
    (parts.folder / "request.json").write_text("{")
    assert parts.differences() == ["a broken request.json"]


def test_two_launches_do_not_write_the_same_folder(parts):
    with parts.alone(), pytest.raises(UserError, match="being written by another launch"), parts.alone():
        pass
    with parts.alone():
        pass
