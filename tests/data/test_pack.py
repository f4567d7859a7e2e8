"""Packing itself: the same bytes whatever the workers, going on after a kill, and one packer to a folder."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import published as pub
import pytest
from jobs import end, start
from packed import refused
from published import image_folder, image_source

from fdtrain import lock
from fdtrain.commands.entry import main
from fdtrain.data import pack as packing
from fdtrain.data import shard_table, writer
from fdtrain.data.pack import pack
from fdtrain.data.sources.digits import in_memory
from fdtrain.data.sources.picture import exactly
from fdtrain.data.sources.published import cifar10
from fdtrain.data.sources.source import Part, Source
from fdtrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def tool(*arguments: object) -> int:
    return main(["pack", *map(str, arguments), "--no-config"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def cifar(tmp_path) -> Path:
    path = tmp_path / "cifar-10-python.tar.gz"
    pub.cifar10(path)
    return path


def test_workers_do_without_torch():
    """Which takes each of them seconds to import."""
    code = "import fdtrain.commands.pack, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_pack_that_is_ended_goes_on_with_other_workers(tmp_path):
    """To the same bytes, whoever has written which of them. An interrupt reaches all processes of a terminal, and the
    first one alone answers it."""
    files = {f"{'ab'[i % 2]}/{i}.png": data for i, data in enumerate(pictures(120, 128))}
    folder = image_folder(tmp_path / "in", files)
    options = ["--encoding", "png", "--shard-images", 4, "--name", "some", "--no-config", "--workers"]
    tool("images", folder, tmp_path / "whole", *options, 1)
    for ending, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 2)):
        out = tmp_path / ending.name
        job = start([sys.executable, *map(str, [ROOT / "tools" / "pack.py", "images", folder, out, *options, 2])])
        while len(list(out.glob(".packing/*.tar.json"))) < 5:
            assert job.poll() is None, job.communicate()
            time.sleep(0.005)
        if ending == signal.SIGKILL:
            job.kill()
        else:
            os.killpg(job.pid, ending)
        # What they say ends with the last of its workers.
        said = end(job)
        assert job.returncode == code
        assert "Traceback" not in said
        assert ("interrupted. The same command goes on" in said) == (code == 2)
        records = {path.name.removesuffix(".json") for path in out.glob(".packing/*.tar.json")}
        assert 5 <= len(records) < 30
        assert not (out / "dataset.json").exists()
        inodes = {name: (out / name).stat().st_ino for name in records}
        tool("images", folder, out, *options, 1)
        assert {name: (out / name).stat().st_ino for name in records} == inodes
        assert contents(out) == contents(tmp_path / "whole")
        assert not (out / ".packing").exists()


def test_a_shard_that_changed_is_packed_again(tmp_path, cifar, monkeypatch, caplog):
    pack(cifar10(cifar), tmp_path / "whole", shard_images=3)
    out = tmp_path / "out"
    monkeypatch.setattr(packing, "write_description", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(cifar10(cifar), out, shard_images=3)
    os.truncate(out / "train-000001.tar", 1000)
    os.remove(out / ".packing" / "train-000003.tar.json")
    (out / ".packing" / "train-000004.tar.json").write_text("{}")
    monkeypatch.undo()
    pack(cifar10(cifar), out, shard_images=3)
    work = out / ".packing"
    assert caplog.messages == [
        f"{work / name}.tar.json is damaged; it is removed and computed again"
        for name in ("train-000001", "train-000004")
    ]
    assert contents(out) == contents(tmp_path / "whole")


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_same_and_other_requests_in_the_folder_of_one(tmp_path, cifar):
    first = pack(cifar10(cifar), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack(cifar10(cifar), tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    shard = (tmp_path / "out" / "train-000000.tar").rename(tmp_path / "away")
    with refused(r"train-000000.tar is listed in dataset.json but missing"):
        pack(cifar10(cifar), tmp_path / "out")
    shard.rename(tmp_path / "out" / "train-000000.tar")
    with refused(r"other settings, see packing.json"):
        pack(cifar10(cifar), tmp_path / "out", encoding="png")
    pub.cifar10(cifar, batch=7)
    with refused("another source"):
        pack(cifar10(cifar), tmp_path / "out")
    (tmp_path / "out" / "packing.json").write_text("{")
    for again in (False, True):
        with refused(r"packing.json"):
            pack(cifar10(cifar), tmp_path / "out", again=again)
    (tmp_path / "out" / "packing.json").unlink()
    with refused("holds a data set already"):
        pack(cifar10(cifar), tmp_path / "out")


def test_a_finished_pack_is_replaced_only_when_that_is_asked_for(tmp_path, monkeypatch):
    """With its list of shards, which is in files of its own where it is long."""
    monkeypatch.setattr(shard_table, "INLINE", 2)
    folder, out = bad_folder(tmp_path / "in", 12, set()), tmp_path / "out"
    pack(image_source(folder), out, shard_images=3)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    with refused("Repeat those, replace it with --again, or choose another folder"):
        pack(image_source(folder), out, shard_images=6)
    assert contents(out) == before
    pack(image_source(folder), out, shard_images=6, again=True)
    pack(image_source(folder), tmp_path / "fresh", shard_images=6)
    assert contents(out) == {**contents(tmp_path / "fresh"), "notes.txt": b"mine"}


def test_two_packers_of_one_folder(tmp_path, cifar):
    (tmp_path / "out").mkdir()
    with lock.held(tmp_path / "out"), refused(f"out is in use by process {os.getpid()}"):
        pack(cifar10(cifar), tmp_path / "out")
    pack(cifar10(cifar), tmp_path / "out")
    assert not (tmp_path / "out" / lock.FILE).exists()
    with refused("cannot be a folder of shards"):
        pack(cifar10(cifar), cifar)


def killed() -> int:
    """As for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path):
    source = Source("some", "lethal", exactly(8, 3), [], {"train": 2 * [Part("lethal", killed, None)]})
    with refused("worker process was killed"):
        pack(source, tmp_path / "out", workers=2)


def test_label_out_of_range_and_no_images(tmp_path):
    part = in_memory(np.zeros((3, 8, 8, 3), np.uint8), np.full(3, 5))
    source = Source("some", "counted", exactly(8, 3), ["a", "b"], {"train": [part]})
    with refused("has label 5, but there are 2 classes"):
        pack(source, tmp_path / "out")
    with refused("split 'test' of counted holds no images"):
        pack(Source("some", "counted", exactly(8, 3), [], {"test": [Part("", 0, None)]}), tmp_path / "empty")


def test_a_file_that_can_grow_no_further(tmp_path, cifar):
    """As a full disk, at whatever write the system refuses; what was finished before stays."""
    pack(cifar10(cifar), tmp_path / "whole", shard_images=3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 10_000, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with refused(r"cannot be written( or read)? \(File too large\)"):
                pack(cifar10(cifar), tmp_path / "out", shard_images=3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    pack(cifar10(cifar), tmp_path / "out", shard_images=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def pictures(count: int, size: int) -> list[bytes]:
    return [pub.encoded(picture) for picture in pub.random_images(count, size)]


def bad_folder(root: Path, images: int, bad: set[int]) -> Path:
    files = {f"{i:03d}.png": b"no image" if i in bad else data for i, data in enumerate(pictures(images, 8))}
    return image_folder(root, files)


def test_bad_images_are_reported_together_and_a_corrected_command_goes_on(tmp_path):
    """Sound shards were written, but with the bad images gone the same request cannot come again."""
    bad, out = range(0, 44, 2), tmp_path / "out"
    folder = bad_folder(tmp_path / "in", 60, set(bad))
    with pytest.raises(UserError) as caught:
        pack(image_source(folder), out, shard_images=2)
    first, *lines = str(caught.value).splitlines()
    assert first == "22 images of in cannot be packed. The first 20:"
    assert len(lines) == len(set(lines)) == 20
    assert all("is not an image" in line and int(line.rpartition("/")[2][:3]) in bad for line in lines)
    assert list(out.glob("*.tar"))
    for number in bad:
        (folder / f"{number:03d}.png").unlink()
    pack(image_source(folder), out, shard_images=4)
    pack(image_source(folder), tmp_path / "again", shard_images=4)
    assert contents(out) == contents(tmp_path / "again")


def test_a_first_image_that_is_bad_does_not_hide_others(tmp_path):
    folder = bad_folder(tmp_path / "in", 6, set())
    first = folder / image_source(folder).splits["train"][0].identity[0][0][0]
    first.write_bytes(b"no image")
    with refused(rf"{first.name} is not an image"):
        pack(image_source(folder), tmp_path / "out")
    bad_folder(tmp_path / "all", 6, set(range(6)))
    with refused("is not an image"):
        image_source(tmp_path / "all")


def test_a_hopeless_source_is_given_up(tmp_path, monkeypatch):
    for module in (packing, writer):
        monkeypatch.setattr(module, "MANY", 5)
    folder = bad_folder(tmp_path / "in", 40, set(range(39)))
    with refused(r"5 images or more \(others were not checked\) of in cannot be packed"):
        pack(image_source(folder), tmp_path / "out", shard_images=2)


def test_a_request_without_a_finished_shard_gives_way(tmp_path, cifar, monkeypatch):
    monkeypatch.setattr(packing, "_write_shards", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(cifar10(cifar), tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out" / "packing.json").exists()
    # A shard whose record was not written any more, and that the next request does not have.
    (tmp_path / "out" / "train-000004.tar").write_bytes(b"")
    pack(cifar10(cifar), tmp_path / "out", "png", shard_images=100)
    pack(cifar10(cifar), tmp_path / "again", "png", shard_images=100)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_tool_prints_what_it_packed(tmp_path, cifar, capsys):
    assert tool("cifar10", cifar, tmp_path / "out", "--workers", 1) == 0
    told = capsys.readouterr()
    assert "cifar10: train: 30 images, 5 shards" in told.out
    assert "note: 50000 images were published as 'train'" in told.out
    assert "packing cifar10: 100%" in told.err
    files = [*(f"train-{i:06d}.tar" for i in range(5)), "test-000000.tar", "index", "dataset.json", "packing.json"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files)


def test_moved_sources_go_on(tmp_path):
    """Absolute paths are no part of a request."""
    pack(image_source(bad_folder(tmp_path / "in", 4, set()), share=2), tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    os.rename(tmp_path / "in", tmp_path / "elsewhere" / "in")
    pack(image_source(tmp_path / "elsewhere" / "in", share=2), tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()


@pytest.mark.parametrize("split", ["../victim", ".hidden", "数字"])
def test_a_split_that_a_file_names_is_no_path(tmp_path, split):
    source = Source("some", "named", exactly(8, 3), [], {split: []})
    with refused(r"cannot stand in dataset.json as splits\."):
        pack(source, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
