"""A data set in a store that speaks S3, on one of two hosts that train from it."""

import sys

import pytest
from checkpoints import assert_same
from conftest import free_port
from jobs import until

pytestmark = pytest.mark.cluster
ACCESS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
# argv: address, port, the data set's folder, a file that says when all is there.
SERVER = """
import sys, threading
from pathlib import Path
import boto3
from moto.server import ThreadedMotoServer

address, port, folder, ready = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
ThreadedMotoServer(address, port, verbose=False).start()
client = boto3.client("s3", endpoint_url=f"http://{address}:{port}")
client.create_bucket(Bucket="bucket")
for file in folder.iterdir():
    client.upload_file(str(file), "bucket", f"digits/{file.name}")
ready.touch()
threading.Event().wait()
"""


def test_two_hosts_train_from_a_store(launch, undisturbed, hosts, digits, tmp_path):
    ready, address, port = tmp_path / "ready", hosts.addresses[0], free_port()
    server = hosts.start(0, [sys.executable, "-c", SERVER, address, str(port), str(digits), str(ready)], **ACCESS)
    until(ready.exists, 120)
    settings = ("training.steps=60", "monitor.evaluate_every=20", "data.path=s3://bucket/digits")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--master-addr={address}", f"--master-port={free_port()}"]
    script = launch.command(*settings, processes=0)[1:]
    reach = {**ACCESS, "AWS_ENDPOINT_URL": f"http://{address}:{port}"}
    jobs = [hosts.start(node, [*torchrun, f"--node-rank={node}", *script], **reach) for node in range(2)]
    said = [job.communicate(timeout=400)[1] for job in jobs]
    server.kill()
    server.communicate()
    assert [job.returncode for job in jobs] == [0, 0], said
    assert launch.losses() == undisturbed.losses()
    assert_same(launch.checkpoint(60), undisturbed.checkpoint(60))
