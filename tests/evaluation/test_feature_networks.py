"""Feature networks: what is read, what is refused, and what each is called."""

import hashlib
import json
import pickle

import pytest
import torch
from packed import describe, image, npy, write_tar
from torch import Tensor, nn

from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation import feature_networks, label_features
from fdtrain.evaluation.feature_networks import INCEPTION, open_features

CPU = torch.device("cpu")


class Stand(nn.Module):
    """Takes bytes of three channels as the published Inception does, with its two outputs."""

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        assert img.shape[1] == 3
        x = img.float().mean((2, 3))
        if return_features:
            return torch.cat([x, x.square()], 1)
        logits = x / 255
        if not no_output_bias:
            logits = logits + torch.tensor([0.0, 0.0, 100.0])
        return logits.softmax(1)


class Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.fixture
def inception(tmp_path, monkeypatch):
    path = tmp_path / INCEPTION
    torch.jit.script(Stand()).save(path)
    monkeypatch.setattr(feature_networks, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def scripted(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.script(Normalised()).save(path)
    about = {"name": "net", "size": 8, "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 1.0]}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


def test_inception_is_known_by_its_checksum(inception):
    network = open_features(inception, CPU)
    assert (network.title, network.identity.name, network.identity.dims) == ("FID", "inception", 6)
    grey = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8)
    mean = grey.float().mean((1, 2, 3))
    torch.testing.assert_close(network.run(grey)[:, :3], mean[:, None].expand(-1, 3))
    # Without the bias of the last layer, which would outweigh everything here.
    torch.testing.assert_close(network.classify(grey), torch.full((4, 3), 1 / 3))


def test_the_inception_kept_is_the_default(inception, monkeypatch):
    monkeypatch.setattr(feature_networks, "CACHE", inception.parent)
    assert open_features(None, CPU).title == "FID"
    inception.unlink()
    with pytest.raises(UserError, match=rf"put {INCEPTION} .* from https://nvlabs.* at {inception}, or name a file"):
        open_features(None, CPU)


def test_inception_is_fetched_from_a_url_once_and_checked(inception, monkeypatch, tmp_path):
    content, fetched = inception.read_bytes(), []

    def fetch(place, into, seconds, most, check):
        fetched.append(place)
        into.write_bytes(content)
        check(into)

    monkeypatch.setattr(feature_networks, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(feature_networks, "fetch", fetch)
    url = f"https://host/{INCEPTION}"
    assert [open_features(url, CPU).title for _ in range(2)] == ["FID", "FID"]
    assert fetched == [url]
    with pytest.raises(UserError, match=f"only {INCEPTION} is fetched"):
        open_features("https://host/other.pt", CPU)
    (tmp_path / "cache" / INCEPTION).unlink()
    content = b"other"
    with pytest.raises(feature_networks.Mismatch, match="another checksum"):
        open_features(url, CPU)
    assert not (tmp_path / "cache" / INCEPTION).exists()


def test_a_network_described_beside_its_file(scripted):
    network = open_features(scripted, CPU)
    assert network.title == "Frechet distance (net)"
    assert network.classify is None
    white = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(network.run(white), torch.tensor([[1.0, 1.5, 1.0]]).expand(2, -1))
    assert network.identity.input == "8x8 bicubic antialiased, mean [0.5, 0.25, 0.0], std [0.5, 0.5, 1.0]"


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda net: net.with_suffix(".json").write_text("{"), "net.json: content: "),
        (lambda net: net.with_suffix(".json").write_text('{"name": "net", "size": 8}'), "mean: Field required"),
        (lambda net: net.with_suffix(".json").unlink(), r"no net\.json beside it"),
        (lambda net: torch.jit.script(nn.Identity()).save(net), "does not map images"),
        (lambda net: net.unlink(), "cannot read"),
    ],
)
def test_what_is_not_a_feature_network(scripted, damage, part):
    damage(scripted)
    with pytest.raises(UserError, match=part):
        open_features(scripted, CPU)


def test_another_file_in_place_of_inception(tmp_path):
    torch.jit.script(Normalised()).save(tmp_path / INCEPTION)
    with pytest.raises(UserError, match=r"its SHA-256 is .* Fetch it again"):
        open_features(tmp_path / INCEPTION, CPU)


class Malicious:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return self.witness.touch, ()


@pytest.mark.parametrize("name", ["inception-2015-12-05.pkl", "net.pt"])
def test_pickles_are_refused_and_run_nothing(tmp_path, name):
    witness = tmp_path / "executed"
    (tmp_path / name).write_bytes(pickle.dumps(Malicious(witness)))
    with pytest.raises(UserError, match="TorchScript"):
        open_features(tmp_path / name, CPU)
    torch.save(Malicious(witness), tmp_path / name)
    with pytest.raises(UserError, match="TorchScript"):
        open_features(tmp_path / name, CPU)
    assert not witness.exists()


@pytest.fixture(scope="module")
def learnt(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "digits-features"
    network, about = label_features.train(Split(digits, "train"))
    label_features.save(network, about, folder)
    return folder


def test_learnt_features_know_the_digits_and_are_the_same_again(learnt, digits):
    network, about, digest = label_features.load(learnt)
    assert label_features.accuracy(network, Split(digits, "test")) > 0.95
    opened = open_features(learnt, CPU)
    assert opened.title == "Frechet distance (digits-features)"
    assert opened.identity.sha256 == digest
    pixels, labels = label_features._images(Split(digits, "train"))
    assert about.accuracy == (opened.classify(pixels).argmax(1) == labels).float().mean().item()
    # Standardised over what was learnt from.
    torch.testing.assert_close(opened.run(pixels).std(0), torch.ones(64), rtol=1e-3, atol=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_features, "EPOCHS", 1)
        states = [label_features.train(Split(digits, "test"))[0].state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(UserError, match=r"are of images \(C, H, W\) = \(1, 8, 8\), not \(3, 8, 8\)"):
        opened.run(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_broken_features(learnt, tmp_path):
    for name in (label_features.DESCRIPTION, label_features.WEIGHTS):
        (tmp_path / name).write_bytes((learnt / name).read_bytes())
    open_features(tmp_path, CPU)
    description = json.loads((learnt / label_features.DESCRIPTION).read_text())
    for name, content, part in (
        (label_features.WEIGHTS, "no weights", ""),
        (label_features.DESCRIPTION, json.dumps(description | {"version": 9}), r" \(version: Input should be 1"),
        (label_features.DESCRIPTION, "", ""),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"holds no sound features{part}"):
            open_features(tmp_path, CPU)


def test_a_split_without_labels(tmp_path):
    write_tar(tmp_path / "train-000000.tar", [("0.npy", npy(image(0)))])
    describe(tmp_path, {"train": {"train-000000.tar": 1}})
    with pytest.raises(UserError, match="has no labels"):
        label_features.train(Split(tmp_path, "train"))
