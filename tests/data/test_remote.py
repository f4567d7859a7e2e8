"""Shards over HTTP, from an S3-compatible store and through pipes: the batches of a folder, whatever fails."""

import itertools
import os
import re
import shutil
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path

import boto3
import pytest
from conftest import ROOT
from flaky import Flaky, redirect
from moto.server import ThreadedMotoServer
from packed import number, pack, refused

from fdtrain.data import fetch
from fdtrain.data.cache import open_cache
from fdtrain.data.lanes import LaneOrder
from fdtrain.data.loader import Batches, LaneDataset
from fdtrain.data.location import locate
from fdtrain.data.shards import ShardReader
from fdtrain.data.split import Split

COUNTS = (8, 5, 9, 1, 7, 6, 12)
MOST = 1 << 20
NAMES = [f"train-{i:06d}.tar" for i in range(len(COUNTS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("remote") / "set"
    pack(path, COUNTS)
    return path


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.5)


def batches(path, cache=None, workers=0, seconds=30.0, stop=15, allow_pipe=False) -> Batches:
    data = locate(path, allow_pipe, 30.0)
    shards = data.split("train")
    order = LaneOrder(shards.images, 4, 0, 6)
    held = open_cache(cache, None, seconds, bool(shards.remote_lengths.size))
    return Batches(LaneDataset(ShardReader(shards, data.description, held), order, range(4), 2), 0, stop, workers)


def numbers(read: Batches) -> list[list[int]]:
    return [[number(x) for x in images.numpy()] for images, _ in read]


@pytest.fixture(scope="module")
def expected(folder):
    return numbers(batches(folder))


@pytest.mark.parametrize(("store", "workers"), [("http", 0), ("http", 2), ("s3", 2)])
def test_every_fault(folder, s3, expected, tmp_path, monkeypatch, store, workers):
    flaky = Flaky(folder) if store == "http" else Flaky(backend=s3)
    faults = [[500, 503], ["cut"], ["slow"], ["reset"], ["wrong"]]
    if store == "http":
        faults += [[429, None], ["stall", "cut", 500]]
        flaky.faults["dataset.json"] = [500, "cut"]
    flaky.faults |= dict(zip(NAMES, faults))
    with flaky.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        place = url if store == "http" else "s3://bucket/set"
        assert numbers(batches(place, tmp_path / "cache", workers)) == expected
        assert numbers(batches(f"{place}/train-{{000000..000006}}.tar", tmp_path / "cache")) == expected
    # Neither two workers nor their prefetchers fetch a shard twice, nor is one fetched that is there.
    assert all(flaky.whole[name] == 1 for name in NAMES)


def test_a_list_over_http_and_no_cache_but_a_temporary_folder(folder, expected, tmp_path):
    shutil.copytree(folder, tmp_path / "web")
    (tmp_path / "web" / "shards.txt").write_text("\n".join(NAMES))
    with Flaky(tmp_path / "web").serve() as url:
        assert numbers(batches(f"{url}/shards.txt", None, workers=2)) == expected
        split = Split(url, "train")
        assert len(split) == sum(COUNTS)
        assert split.batch(range(8, 11))[0][:, 0, 0, 0].tolist() == [8, 9, 10]


def test_pipe(folder, expected, tmp_path):
    shutil.copy(folder / "dataset.json", tmp_path)
    (tmp_path / "shards.txt").write_text(f"pipe:cat {folder}/train-{{000000..000006}}.tar")
    read = batches(tmp_path / "shards.txt", tmp_path / "cache", workers=1, allow_pipe=True)
    assert numbers(read) == expected
    (tmp_path / "shards.txt").write_text(f"pipe:exit 3; cat {folder}/train-{{000000..000006}}.tar")
    with refused("the command ended with code 3"):
        numbers(batches(tmp_path / "shards.txt", tmp_path / "other", seconds=0.1, allow_pipe=True))


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (404, r"no such file\. Check data.path"),
        (403, r"403 Forbidden\. Check the credentials"),
        ("wrong", r"checksum mismatch.*Upload it again"),
        (500, r"500 Internal Server Error \(tried for 1 s\)\. Check the network"),
        ("cut", r"tried for 1 s"),
        ("stall", r"tried for 1 s"),
    ],
)
def test_what_cannot_be_mended_is_told_in_one_line(folder, tmp_path, fault, complaint):
    flaky = Flaky(folder)
    flaky.always = dict.fromkeys(NAMES, fault)
    with flaky.serve() as url:
        read = batches(url, tmp_path / "cache", workers=1, seconds=1)
        with refused(complaint) as error:
            numbers(read)
    assert "train-00000" in str(error.value)
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_slow_server_meets_the_deadline(folder, tmp_path):
    flaky = Flaky(folder)
    flaky.always = {NAMES[0]: "slow"}
    with flaky.serve() as url, refused("tried for"):
        fetch.fetch(f"{url}/{NAMES[0]}", tmp_path / "file", 0.05, MOST)


def endless(head: bytes, filling: bytes):
    return itertools.chain([head], itertools.repeat(filling * 2**20, 2000))


ENDLESS = [b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % line for line in (b"Connection: close", b"Content-Length: %d" % 2**40)]


@pytest.mark.parametrize("head", ENDLESS)
def test_no_more_is_stored_than_dataset_json_says(folder, tmp_path, head):
    """A shard without end, of unknown length or of a terabyte."""
    flaky = Flaky(folder)
    flaky.always = {NAMES[0]: partial(endless, head, b"x")}
    with flaky.serve() as url:
        read = batches(f"{url}/train-{{000000..000000}}.tar", tmp_path / "cache")
        with refused(r"expected\. Upload it again"):
            numbers(read)
    # Twice by the reader, twice by whoever fetches ahead.
    assert flaky.requests[NAMES[0]] <= 4
    assert flaky.sent < 100 * 2**20
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_command_s_output_without_end(folder, tmp_path):
    """Ended, with what it has started, at the length that is expected."""
    shutil.copy(folder / "dataset.json", tmp_path)
    (tmp_path / "shards.txt").write_text(f"pipe:(echo $BASHPID $$; exec cat /dev/zero) | tee {tmp_path}/{NAMES[0]}")
    read = batches(tmp_path / "shards.txt", tmp_path / "cache", allow_pipe=True)
    with refused(r"expected\. Upload it again"):
        numbers(read)
    # tee has ended with the shell: what it writes grows no more.
    size = (tmp_path / NAMES[0]).stat().st_size
    assert size < 100 * 2**20
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("path", ["set", "shards.txt"])
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        *(
            (redirect(to), "redirects in circles, or to")
            for to in (b"/dataset.json", b"file:///etc/passwd", b"http://[")
        ),
        *((partial(endless, head, b"["), "expected") for head in ENDLESS),
    ],
)
def test_descriptions_and_lists_that_lead_nowhere_or_have_no_end(monkeypatch, path, answer, complaint):
    """Told at once: they are final."""
    monkeypatch.setattr(fetch, "MAX_TEXT_BYTES", 1 << 20)
    flaky = Flaky()
    flaky.always = {"dataset.json": answer, "shards.txt": answer}
    with flaky.serve() as url, refused(complaint) as error:
        locate(f"{url}/{path}", seconds=300)
    assert flaky.requests.total() <= 11
    assert flaky.sent < 100 * 2**20
    assert "passwd" not in str(error.value)
    assert "tried for" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("simplecache::file://{folder}", "file systems within others"),
        ("nonsense://bucket/set", "nonsense"),
        ("pipe:sleep 600", "timed out"),
    ],
)
def test_places_that_give_nothing(folder, tmp_path, place, complaint):
    with refused(complaint):
        fetch.fetch(place.format(folder=folder), tmp_path / "file", 0.3, MOST)


@pytest.mark.parametrize(
    "line", ["/{folder}/{name}", "file://{folder}/{name}", "local://{folder}/{name}", "memory://{name}", "zip://{name}"]
)
def test_a_remote_list_names_no_local_file(folder, tmp_path, line):
    shutil.copytree(folder, tmp_path / "web")
    (tmp_path / "web" / "shards.txt").write_text(line.format(folder=folder, name=NAMES[0]))
    with Flaky(tmp_path / "web").serve() as url, refused("A remote list may name"):
        locate(f"{url}/shards.txt", seconds=10)


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
            fetch.fetch(place, tmp_path / "file", 30, MOST)
            assert connections(address) == 0
            with refused():
                fetch.fetch(f"{place}x", tmp_path / "file", 30, MOST)
            assert connections(address) == 0


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


def test_tries_in_vain_are_told_meanwhile(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fetch, "SILENT_SECONDS", 0.0)
    flaky = Flaky(folder)
    flaky.faults = {NAMES[0]: [503] * 5}
    with flaky.serve() as url:
        fetch.fetch(f"{url}/{NAMES[0]}", tmp_path / "file", 30, MOST)
    [told] = caplog.messages
    assert re.fullmatch(rf"{url}/{NAMES[0]}: the server answers 503 Service Unavailable; trying for \d+ s more", told)


def test_no_redirect_leads_from_the_internet_to_this_machine(tmp_path, monkeypatch):
    """127.0.0.2 stands for an address of the internet; there is none here that would answer."""
    (tmp_path / "x").write_bytes(b"secret")
    inner, outer = Flaky(tmp_path), Flaky()
    with inner.serve() as url, outer.serve() as other:
        outer.always = {"x": redirect(f"{url}/x".encode())}
        other = other.replace("127.0.0.1", "127.0.0.2")
        fetch.fetch(f"{other}/x", tmp_path / "file", 10, MOST)
        assert (tmp_path / "file").read_bytes() == b"secret"
        monkeypatch.setattr(fetch, "_is_public", lambda ip: str(ip) == "127.0.0.2")
        with refused("redirects to an address of this machine or of its link"):
            fetch.fetch(f"{other}/x", tmp_path / "file", 10, MOST)
        assert (inner.requests["x"], outer.requests["x"]) == (1, 2)
        # Who names such an address himself means it.
        fetch.fetch(f"{url}/x", tmp_path / "file", 10, MOST)


def test_a_certificate_of_a_private_authority(tmp_path, monkeypatch):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey ed25519 -nodes -keyout {key} -out {certificate} -days 1 -subj /CN=localhost"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    (tmp_path / "x").write_bytes(b"content")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Flaky(tmp_path).serve(context) as url:
        url = url.replace("http://127.0.0.1", "https://localhost")
        with refused(r"certificate is not trusted here\. For an authority of your own set SSL_CERT"):
            fetch.fetch(f"{url}/x", tmp_path / "file", 30, MOST)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        program = "import sys; from fdtrain.data.fetch import read_text; print(read_text(sys.argv[1], 30))"
        done = subprocess.run([sys.executable, "-c", program, f"{url}/x"], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == "content\n", done.stderr


def test_s3_missing_shard_bucket_and_credentials(s3, folder, tmp_path, monkeypatch):
    flaky = Flaky(backend=s3)
    flaky.always = {"dataset.json": 403}
    with flaky.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with refused("no such file"):
            fetch.fetch("s3://bucket/set/train-000077.tar", tmp_path / "file", 10, MOST)
        with refused(r"s3://nowhere/set/dataset.json: "):
            locate("s3://nowhere/set", seconds=10)
        with refused("Check the credentials"):
            locate("s3://bucket/set", seconds=10)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    with refused("Check the credentials"):
        locate("s3://bucket/set", seconds=10)
