"""State cut into parts: any cut can be read by any other, and the files are what the library reads."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from fdtrain.checkpoint.fragments import (
    WEIGHT,
    Fragment,
    FragmentReader,
    fragments_of,
    index_of,
    index_within,
    part_name,
    write_part,
)
from fdtrain.errors import UserError


def write_cut(folder, tensor: torch.Tensor, cuts: list[int]) -> None:
    """One part for each piece between the cuts."""
    for old in folder.glob("part_*"):
        old.unlink()
    ends = [*sorted(cuts), len(tensor)]
    for rank, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        pieces = [Fragment(WEIGHT, "a.b", start, tensor[start:end].clone())] if end > start else []
        write_part(folder / part_name(rank), pieces)


def read_all(folder) -> FragmentReader:
    paths = sorted(folder.glob("part_*"))
    return FragmentReader(folder, index_of((int(path.stem[5:]), fragments_of(path)) for path in paths))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 50), max_size=5), st.lists(st.integers(0, 50), max_size=5))
def test_what_some_ranks_wrote_others_read(tmp_path_factory, written, read):
    folder, tensor = tmp_path_factory.mktemp("parts"), torch.randn(50)
    write_cut(folder, tensor, written)
    parts = read_all(folder)
    ends = [*sorted(read), 50]
    for start, end in zip([0, *ends], ends, strict=False):
        assert torch.equal(parts.read(WEIGHT, "a.b", start, end - start), tensor[start:end])
    assert torch.equal(parts.whole(WEIGHT, {"a.b": torch.Size([5, 10])})["a.b"], tensor.view(5, 10))


def test_a_reader_opens_what_it_reads(tmp_path):
    """An index of a thousand even parts is a line, and says of each which it is."""
    tensor = torch.arange(64.0)
    write_cut(tmp_path, tensor, list(range(4, 64, 4)))
    parts = read_all(tmp_path)
    assert parts.index == {"weight/a.b": [(0, 4, 0, 16)]}
    assert index_within(parts.index, range(5, 9)) == {"weight/a.b": [(20, 4, 5, 4)]}
    assert parts.opened == {}
    assert torch.equal(parts.read(WEIGHT, "a.b", 22, 7), tensor[22:29])
    assert parts.opened.keys() == {5, 6, 7}


@given(st.lists(st.lists(st.tuples(st.sampled_from(["w/a", "w/b"]), st.integers(1, 5)), max_size=4), max_size=9))
def test_the_index_of_some_parts_is_that_of_all_within_them(made):
    """Whatever fragments they have, as long as these follow one another."""
    ends, parts = dict.fromkeys(["w/a", "w/b"], 0), []
    for sizes in made:
        parts.append([])
        for name, size in sizes:
            parts[-1].append((name, ends[name], size))
            ends[name] += size
    numbered = list(enumerate(parts))
    for start in range(len(parts)):
        assert index_within(index_of(numbered), range(start, len(parts))) == index_of(numbered[start:])


def test_a_part_is_a_safetensors_file_of_its_size(tmp_path):
    path = tmp_path / part_name(0)
    tensor = torch.randn(1000)
    digest = write_part(path, [Fragment(WEIGHT, "w", 8, tensor)])
    assert torch.equal(load_file(path)["weight/w/8"], tensor)
    assert digest == {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "finite": True,
        "fragments": [("weight/w", 8, 1000)],
    }
    assert path.stat().st_size < 4 * 1000 + 200


def test_a_missing_part_is_told(tmp_path):
    write_cut(tmp_path, torch.randn(50), [20, 30])
    (tmp_path / part_name(1)).unlink()
    parts = read_all(tmp_path)
    assert len(parts.read(WEIGHT, "a.b", 0, 20)) == 20
    with pytest.raises(UserError, match=r"lacks elements 20 to 50 of weight of a\.b: parts are missing"):
        parts.read(WEIGHT, "a.b", 0, 50)
    with pytest.raises(UserError, match="lacks elements 0 to 1 of weight of other"):
        parts.read(WEIGHT, "other", 0, 1)


@pytest.mark.parametrize("content", [b"not a part", save({"weight": torch.zeros(3)})])
def test_a_file_that_is_no_part_is_told(tmp_path, content):
    """Or has keys of another kind."""
    (tmp_path / part_name(0)).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*part_00000"):
        read_all(tmp_path)
