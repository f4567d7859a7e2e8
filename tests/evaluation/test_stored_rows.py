"""Work that was interrupted: which parts there are, which are missing, which are damaged."""

import os

import pytest
import torch

from fdtrain.errors import UserError
from fdtrain.evaluation.stored_rows import RowStore, StoredValues


def levels(part):
    return torch.tensor(list(part), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


@pytest.fixture
def parts(tmp_path):
    parts = RowStore(tmp_path / "work", {"images": 20, "seed": 1}, 20)
    parts.prepare()
    return parts


def test_parts_come_back_in_order_whoever_wrote_them(parts):
    for part in (range(16, 20), range(0, 8), range(8, 16)):
        parts.save(part, levels(part))
    assert parts.finished() == [range(0, 8), range(8, 16), range(16, 20)]
    assert torch.cat([found for _, found in parts.load_all()])[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_whatever_is_missing_is_sampled_once(parts, batch):
    """With another batch size than the parts that are there."""
    there = [range(0, 8), range(10, 13)]
    for part in there:
        parts.save(part, levels(part))
    chunks = parts.missing(batch)
    assert sorted(i for part in (*there, *chunks) for i in part) == list(range(20))
    assert all(0 < len(chunk) <= batch and chunk.start // batch == (chunk.stop - 1) // batch for chunk in chunks)


def test_what_is_not_finished_is_not_there(parts):
    temporary = parts.folder / ".00000000-00000020-0123456789abcdef.npy.12345678"
    temporary.write_bytes(b"half of a part")
    assert parts.finished() == []
    parts.prepare()
    assert not temporary.exists()
    assert parts.missing(20) == [range(0, 20)]
    with pytest.raises(UserError, match=r"lacks image 0\. Every node must see the same folder"):
        list(parts.load_all())


def test_parts_of_something_else(parts, tmp_path):
    assert RowStore(parts.folder, {"images": 20, "seed": 1}, 20).differences() == []
    other = RowStore(parts.folder, {"images": 20, "seed": 2}, 20)
    assert other.differences() == ["seed 1, not 2"]
    parts.save(range(3), levels(range(3)))
    other.prepare()
    assert other.finished() == []
    # A cleaner of another request that is killed halfway must not leave parts that pass for ours.
    other.save(range(3), levels(range(3)))
    (parts.folder / "request.json").unlink()
    other.prepare()
    assert other.finished() == []
    (parts.folder / "request.json").write_text("{")
    assert parts.differences() == ["a broken request.json"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b""])
def test_a_damaged_part_is_removed_with_a_warning(parts, caplog, damage):
    for part in (range(0, 8), range(8, 20)):
        parts.save(part, levels(part))
    file = parts.folder / next(name for name in os.listdir(parts.folder) if name.startswith("00000008-00000020-"))
    file.write_bytes(damage(file.read_bytes()))
    # While the samples are finished there is no way to draw it again.
    with pytest.raises(UserError, match=r"was damaged and is removed\. Repeat the command"):
        list(parts.load_all())
    parts.save(range(8, 20), levels(range(8, 20)))
    file.write_bytes(damage(file.read_bytes()))
    parts.prepare()
    assert caplog.messages == [f"{file} is damaged; it is removed and computed again"]
    assert parts.missing(6) == [range(8, 12), range(12, 18), range(18, 20)]


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.* cannot be written \(.+\)\. Make room"):
        RowStore(tmp_path / "file", {}, 1).prepare()


CPU = torch.device("cpu")


def squares(images):
    return torch.tensor([[i * i, -i] for i in images], dtype=torch.float64)


def run(folder, compute, count=10, **request):
    stored = StoredValues(folder, CPU, request)
    return stored.over_images("squares", compute, count, 2, 3), stored


def test_an_interrupted_evaluation_goes_on(tmp_path):
    asked = []

    def compute(images):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(images)
        return squares(images)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, compute)
    again = []
    values, stored = run(tmp_path, lambda images: again.append(images) or squares(images))
    assert asked + again == [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
    assert torch.equal(values, squares(range(10)))
    stored.discard()
    assert list(tmp_path.iterdir()) == []
