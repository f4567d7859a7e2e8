"""Things from outside, spoiled in every way: refused in one line or read as others read them; nothing else happens.

``make fuzz`` tries many more cases, and other ones each time.
"""

import json
import os
import shutil
import tarfile
import zlib
from array import array
from itertools import chain
from pathlib import Path

import generators as make
import numpy as np
import pytest
from children import Child, Ended
from flaky import Flaky
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from packed import describe, pack, tar_bytes

from fdtrain.data import shard_index
from fdtrain.data.dataset import FILE
from fdtrain.data.decode import IMAGES
from fdtrain.data.location import locate
from fdtrain.data.shards import OpenShard

CASES = int(os.environ.get("FDTRAIN_FUZZ_CASES", "0"))


def cases(number: int):
    """A test of so many ``data``, in the suite always the same; with ``make fuzz``, of as many as are asked for."""
    chosen = settings(
        max_examples=CASES or number,
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # A case that fails is told as it is: to make it smaller would take many restarts of the children.
        phases=[Phase.generate],
    )
    return lambda test: chosen(given(data=st.data())(test))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def attacked(place):
    child = Child("attacked", place, cpu_seconds=20)
    yield child
    child.close()


@pytest.fixture(scope="module")
def reference(place):
    child = Child("reference", place, cpu_seconds=2)
    yield child
    child.close()


def emptied(place: Path) -> Path:
    folder = place / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def told(child: Child, **case):
    """What the program made of a case; None: it was refused, in a line."""
    answer = child(**case)
    assert "trace" not in answer, answer["trace"]
    assert not answer["noted"]
    assert not Path("marked").exists()
    for message in [answer.get("refused", ""), *(x for x in answer.get("result") or [] if isinstance(x, str))]:
        assert message.isprintable(), message
        assert len(message) < 1000, message
        assert "SECRET" not in message
    return answer.get("result")


def otherwise(child: Child, **case):
    """What others make of it; None: they cannot read it, or not in time."""
    try:
        return child(**case).get("result")
    except Ended:
        return None


@cases(80)
def test_shards(data, place, attacked, reference):
    folder = emptied(place)
    members = data.draw(make.members())
    format = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    try:
        content = tar_bytes(members, format)
    except ValueError:  # A name too long for USTAR.
        content = tar_bytes(members, tarfile.PAX_FORMAT)
    (folder / "train.tar").write_bytes(data.draw(make.spoiled(content)))
    expected = otherwise(reference, target="shard", path=str(folder / "train.tar"))
    describe(folder, {"train": {"train.tar": len(expected) if expected else 2}})
    found = told(attacked, target="shard", folder=str(folder))
    if found is None or expected is None:
        return
    assert "ambiguous" not in expected
    assert [a if isinstance(a, list) else b for a, b in zip(expected, found, strict=True) if isinstance(b, list)] == [
        b for b in found if isinstance(b, list)
    ]


@cases(50)
def test_indices(data, place, attacked):
    """Of a shard: a spoiled one is refused, and one whose checksum is right all the same does no harm."""
    folder = emptied(place)
    pack(folder, (3,))
    [placed] = locate(folder).split("train")
    opened = OpenShard(placed, None)
    opened.close()
    samples = array("q", np.stack(opened.samples, 1).ravel().tolist())
    whole = shard_index.content(placed.shard, IMAGES, samples)
    spoiled = data.draw(make.spoiled(whole, 1))
    path = shard_index.place(folder, placed.shard.file)
    shard_index.write(path, spoiled)
    assert told(attacked, target="shard", folder=str(folder)) is None or spoiled == whole
    shard_index.write(path, spoiled[:-4] + zlib.crc32(spoiled[:-4]).to_bytes(4, "little"))
    told(attacked, target="shard", folder=str(folder))


@cases(50)
def test_archives(data, place, attacked, reference):
    """Tars and zips of pictures. An image is that of its name, with the class of its folder."""
    folder = emptied(place)
    path = folder / data.draw(st.sampled_from(["a.tar", "a.zip"]))
    path.write_bytes(data.draw(make.tars() if path.suffix == ".tar" else make.zips()))
    found = told(attacked, target="archive", path=str(path))
    expected = otherwise(reference, target="archive", path=str(path))
    if found is None or expected is None:
        return
    admitted = {digest for _, digests in expected for digest in digests}
    assert {x[1] for x in found if isinstance(x, list)} <= admitted


@pytest.mark.parametrize(("target", "files"), make.FILES)
@cases(50)
def test_files(data, place, attacked, target, files):
    """A picture, a folder of parquet or of save_to_disk, a batch of CIFAR or ImageNet, a configuration."""
    folder = emptied(place)
    for name, content in data.draw(files).items():
        (folder / name).write_bytes(content)
    told(attacked, target=target, folder=str(folder))


@cases(50)
def test_descriptions(data, place, attacked):
    folder = emptied(place)
    (folder / "train.tar").write_bytes(b"x" * 1024)
    describe(folder, {"train": {"train.tar": 1}})
    right = json.loads((folder / FILE).read_text())
    if data.draw(st.booleans()):
        right["members"] = {"image": ["image.png", "jpg"], "label": "meta.json", "field": "label"}
        right["splits"]["train"][0]["place"] = "train.tar"
    (folder / FILE).write_bytes(data.draw(make.changed(right, json.dumps) | make.JSON_TEXTS))
    found = told(attacked, target="description", path=str(folder / FILE))
    if found is not None:
        given = json.loads((folder / FILE).read_bytes().decode(errors="replace"))
        for shard in chain.from_iterable(given["splits"].values()):
            if shard.get("place", "") is None:
                del shard["place"]
        assert found == given
    told(attacked, target="shard", folder=str(folder))


@cases(30)
def test_answers(data, place, attacked):
    """Of a web server: a shard's bytes are those that were packed, or none."""
    folder = emptied(place)
    pack(folder / "set", (2,))
    expected = told(attacked, target="shard", folder=str(folder / "set"))
    flaky = Flaky(folder / "set")
    name = data.draw(st.sampled_from(["dataset.json", "train-000000.tar"]))
    flaky.always = {name: data.draw(make.answers((folder / "set" / name).read_bytes()))}
    with flaky.serve() as url:
        found = told(attacked, target="remote", url=url, folder=str(folder / "cache"))
    assert found is None or found == expected


def test_the_watch_sees_what_it_must(place, attacked, reference):
    """Else nothing above would show anything."""
    (place / "case").mkdir(exist_ok=True)
    answer = attacked(target="misbehave", path=str(place / "case"))
    assert "PermissionError" not in answer.get("trace", "")
    seen = " ".join(answer["noted"])
    for event in ("open('/etc/passwd'", "os.system", "os.remove", "pickle.find_class", "subprocess.Popen"):
        assert event in seen
    assert "MemoryError" in attacked(target="swell")["trace"]
    with pytest.raises(Ended, match="exit code -24"):  # SIGXCPU
        reference(target="spin")
