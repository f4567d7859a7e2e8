import pytest
import torch

from fdtrain.evaluation import partial_values, row_store

CPU = torch.device("cpu")


def squares(images):
    return torch.tensor([[i * i, -i] for i in images], dtype=torch.float64)


def run(folder, compute, count=10):
    return partial_values.over_images(count, 3, 2, compute, folder, CPU, "squares")


def test_an_interrupted_evaluation_goes_on(tmp_path):
    folder = row_store.folder_for(tmp_path, {"draws": 1})
    asked = []

    def compute(images):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(images)
        return squares(images)

    with pytest.raises(KeyboardInterrupt):
        run(folder, compute)
    again = []
    values = run(folder, lambda images: again.append(images) or squares(images))
    assert asked + again == [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
    assert torch.equal(values, squares(range(10)))
    row_store.discard(folder)
    assert list(tmp_path.iterdir()) == []


def test_other_settings_never_meet_what_is_kept(tmp_path):
    one, other = (row_store.folder_for(tmp_path, {"draws": draws}) for draws in (1, 2))
    run(one, squares)
    assert torch.equal(run(other, lambda images: 2 * squares(images)), 2 * squares(range(10)))


def test_a_damaged_part_is_computed_again(tmp_path):
    folder = row_store.folder_for(tmp_path, {})
    run(folder, squares)
    (part,) = folder.glob("*.npy")
    part.write_bytes(part.read_bytes()[:50])
    assert torch.equal(run(folder, squares), squares(range(10)))


def test_values_of_another_shape_are_not_believed(tmp_path):
    run(tmp_path, squares, count=20)
    computed = []
    run(tmp_path, lambda images: computed.append(images) or squares(images))
    assert len(computed) == 4


def test_nothing_is_kept_without_a_place():
    assert row_store.folder_for(None, {}) is None
    assert torch.equal(run(None, squares), squares(range(10)))
