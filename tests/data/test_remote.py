"""Shards over HTTP, from an S3-compatible store and through pipes: the batches of a folder, whatever fails."""

import multiprocessing
import os
import shutil
from pathlib import Path

import boto3
import pytest
from flaky import Flaky
from moto.server import ThreadedMotoServer
from packed import number, pack

from fdtrain.data import fetch
from fdtrain.data.cache import open_cache
from fdtrain.data.lanes import LaneOrder
from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.location import locate
from fdtrain.data.shards import ShardReader
from fdtrain.data.split import Split
from fdtrain.errors import UserError

COUNTS = (8, 5, 9, 1, 7, 6, 12)
NAMES = [f"train-{i:06d}.tar" for i in range(len(COUNTS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("remote") / "set"
    pack(path, COUNTS)
    return path


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(fetch, "STALLED", 0.5)


def batches(path, cache=None, workers=0, seconds=30.0, stop=15, allow_pipe=False) -> Batches:
    data = locate(path, allow_pipe, 30.0)
    shards = data.split("train")
    order = LaneOrder([placed.shard.images for placed in shards], 4, 0, 6)
    held = open_cache(cache, None, seconds, [placed.place for placed in shards])
    return Batches(LaneDataset(ShardReader(shards, data.description, held), order, range(4), 2), 0, stop, workers)


def numbers(read: Batches) -> list[list[int]]:
    return [[number(x) for x in images.numpy()] for images, _ in read]


@pytest.fixture(scope="module")
def expected(folder):
    return numbers(batches(folder))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_http_with_every_fault(folder, expected, tmp_path, workers):
    flaky = Flaky(folder)
    faults = [[500, 503, 500], ["cut", "cut"], ["slow"], ["reset"], ["wrong"], [429, None], ["stall", "cut", 500]]
    flaky.faults |= dict(zip(NAMES, faults, strict=True)) | {"dataset.json": [500, "cut"]}
    with flaky.serve() as url:
        assert numbers(batches(url, tmp_path / "cache", workers)) == expected
    # Neither two workers nor their prefetchers fetch a shard twice.
    assert all(flaky.whole[name] == 1 for name in NAMES)


def test_a_filled_cache_needs_no_server_but_for_the_description(folder, expected, tmp_path):
    for _ in range(2):
        flaky = Flaky(folder)
        with flaky.serve() as url:
            assert numbers(batches(url, tmp_path / "cache", workers=1)) == expected
    assert set(flaky.requests) == {"dataset.json"}


def test_brace_pattern_and_list_over_http(folder, expected, tmp_path):
    shutil.copytree(folder, tmp_path / "web")
    with Flaky(tmp_path / "web").serve() as url:
        assert numbers(batches(f"{url}/train-{{000000..000006}}.tar", tmp_path / "cache")) == expected
        (tmp_path / "web" / "shards.txt").write_text("\n".join(NAMES))
        assert numbers(batches(f"{url}/shards.txt", tmp_path / "cache")) == expected


def test_without_a_cache_a_temporary_folder_serves(folder, expected):
    with Flaky(folder).serve() as url:
        assert numbers(batches(url, None, workers=2)) == expected
        assert len(Split(url, "train")) == sum(COUNTS)
        assert Split(url, "train").batch(range(8, 11))[0][:, 0, 0, 0].tolist() == [8, 9, 10]


def test_pipe(folder, expected, tmp_path):
    shutil.copy(folder / "dataset.json", tmp_path)
    (tmp_path / "shards.txt").write_text(f"pipe:cat {folder}/train-{{000000..000006}}.tar")
    read = batches(tmp_path / "shards.txt", tmp_path / "cache", workers=1, allow_pipe=True)
    assert numbers(read) == expected
    (tmp_path / "shards.txt").write_text(f"pipe:exit 3; cat {folder}/train-{{000000..000006}}.tar")
    with pytest.raises(UserError, match="the command ended with code 3"):
        numbers(batches(tmp_path / "shards.txt", tmp_path / "other", seconds=0.1, allow_pipe=True))


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (404, r"no such file\. Check data.path"),
        (401, r"401 Unauthorized\. Check the credentials"),
        (403, r"403 Forbidden\. Check the credentials"),
        ("wrong", r"checksum mismatch.*Upload it again"),
        (500, r"500 Internal Server Error \(tried for 1 s\)\. Check the network"),
        ("cut", r"tried for 1 s"),
        ("reset", r"tried for 1 s"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_mended_is_told_in_one_line(folder, tmp_path, fault, complaint, workers):
    flaky = Flaky(folder)
    flaky.always = dict.fromkeys(NAMES, fault)
    with flaky.serve() as url:
        read = batches(url, tmp_path / "cache", workers, seconds=1)
        with pytest.raises(UserError, match=complaint) as error:
            numbers(read)
    assert "train-00000" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_nothing_final_is_asked_for_again(folder, tmp_path):
    flaky = Flaky(folder)
    flaky.always = {NAMES[0]: 404, NAMES[1]: "wrong"}
    with flaky.serve() as url:
        for name in NAMES[:2]:
            with pytest.raises(UserError):
                fetch.fetch(f"{url}/{name}", tmp_path / "file", 30, _refuse_wrong(folder / name))
    assert (flaky.requests[NAMES[0]], flaky.requests[NAMES[1]]) == (1, 2)


def _refuse_wrong(original):
    def check(path):
        if path.read_bytes() != original.read_bytes():
            raise fetch.Mismatch("wrong")

    return check


def test_a_stalled_or_endless_server_meets_the_deadline(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "STALLED", 0.1)
    flaky = Flaky(folder)
    flaky.always = {NAMES[0]: "stall", NAMES[1]: "slow"}
    with flaky.serve() as url:
        for name, seconds in ((NAMES[0], 0.3), (NAMES[1], 0.05)):
            with pytest.raises(UserError, match=r"timed out|too slow|tried for"):
                fetch.fetch(f"{url}/{name}", tmp_path / "file", seconds)


def test_no_server_at_all(tmp_path):
    with Flaky(tmp_path).serve() as url:
        pass
    with pytest.raises(UserError, match=r"tried for 0\.1 s") as error:
        locate(url, seconds=0.1)
    assert "\n" not in str(error.value)


def test_passwords_are_not_shown(folder):
    with Flaky(folder).serve() as url, pytest.raises(UserError) as error:
        locate(url.replace("://", "://me:secret@") + "/nowhere")
    assert "secret" not in str(error.value)
    assert "127.0.0.1" in str(error.value)


def connections(place: str) -> int:
    """Open ones of this process to a server on loopback."""
    port = f":{int(place.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(port) and row[3] == "01" for row in rows)


def test_no_connection_outlives_a_fetch(folder, s3, tmp_path, monkeypatch):
    """Workers are forked: a connection that they inherit would be spoilt for both."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    with Flaky(folder).serve() as url:
        for address, place in ((url, f"{url}/{NAMES[0]}"), (s3, f"s3://bucket/set/{NAMES[0]}")):
            fetch.fetch(place, tmp_path / "file", 30)
            assert connections(address) == 0
            with pytest.raises(UserError):
                fetch.fetch(f"{place}x", tmp_path / "file", 30)
            assert connections(address) == 0


def test_fetching_in_a_fork_does_not_disturb_its_parent(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "STALLED", 60)
    with Flaky(folder).serve() as url:
        for i in range(5):
            fetch.fetch(f"{url}/{NAMES[0]}", tmp_path / "file", 20)
            place = f"{url}/{NAMES[1]}"
            child = multiprocessing.get_context("fork").Process(
                target=fetch.fetch, args=(place, tmp_path / f"child{i}", 20)
            )
            child.start()
            child.join()
            assert child.exitcode == 0


def test_unknown_and_missing_protocols():
    for path in ("nonsense://bucket/set", "gs://bucket/set"):
        with pytest.raises(UserError) as error:
            locate(path, seconds=0.1)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def s3(folder):
    """An S3-compatible server with the data set in a bucket: its address."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="bucket")
    for file in folder.iterdir():
        client.upload_file(str(file), "bucket", f"set/{file.name}")
    yield address
    server.stop()
    patch.undo()


@pytest.mark.parametrize("workers", [0, 2])
def test_s3_with_faults(s3, expected, tmp_path, monkeypatch, workers):
    flaky = Flaky(backend=s3)
    flaky.faults |= {
        NAMES[0]: [500, 503],
        NAMES[1]: ["cut"],
        NAMES[2]: ["slow"],
        NAMES[3]: ["reset"],
        NAMES[4]: ["wrong"],
    }
    with flaky.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert numbers(batches("s3://bucket/set", tmp_path / "cache", workers)) == expected
        assert numbers(batches("s3://bucket/set/train-{000000..000006}.tar", tmp_path / "cache", workers)) == expected
    assert all(flaky.whole[name] == 1 for name in NAMES)


def test_s3_missing_shard_bucket_and_credentials(s3, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    with pytest.raises(UserError, match="no such file"):
        fetch.fetch("s3://bucket/set/train-000077.tar", tmp_path / "file", 10)
    with pytest.raises(UserError, match=r"s3://nowhere/set/dataset.json: "):
        locate("s3://nowhere/set", seconds=10)
    flaky = Flaky(backend=s3)
    flaky.always = {"dataset.json": 403}
    with flaky.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(UserError, match="Check the credentials"):
            locate("s3://bucket/set", seconds=10)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    with pytest.raises(UserError, match="Check the credentials"):
        locate("s3://bucket/set", seconds=10)
