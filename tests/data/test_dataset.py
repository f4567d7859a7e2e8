"""dataset.json is checked as it is read, and written in one rename."""

import json

import pytest
from packed import pack

from fdtrain.data.dataset import FILE, parse_description, read_description, write_description
from fdtrain.errors import UserError


def test_what_is_written_is_read(tmp_path):
    description = pack(tmp_path / "set", (2, 3), size=5, levels=200)
    assert read_description(tmp_path / "set") == description
    assert description.images("train") == 5
    assert description.shape == (3, 5, 5)
    assert description.dims == 75
    write_description(tmp_path, description)
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 99}, "version 99, this fdtrain reads 1"),
        ({"levels": 1}, "levels: Input should be greater"),
        ({"channels": 0}, "channels: Input"),
        ({"size": "big"}, "size: Input should be a valid integer"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"classes": None}, "classes: Input should be a valid list"),
    ],
)
def test_names_the_key_that_is_wrong(tmp_path, change, complaint):
    pack(tmp_path / "set", (2,))
    content = json.loads((tmp_path / "set" / FILE).read_text()) | change
    with pytest.raises(UserError, match=complaint) as error:
        parse_description(json.dumps(content), "there/dataset.json")
    assert str(error.value).startswith("there/dataset.json: ")
    assert "\n" not in str(error.value)


def test_missing(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_description(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        read_description(tmp_path)
