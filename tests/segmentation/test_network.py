"""The network: shapes, normalisation, start weights tensor by tensor, files and what is refused."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.params import Segmentation
from drgrade.segmentation.network import SegmentationNetwork, load_trunk, new_network

TINY = Segmentation(encoder="test_efficientnet", start="random", tile=64, kinds=["EX", "MA"])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tests run side by side: more threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    return new_network(TINY).eval()


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("architecture", get_args(Segmentation.model_fields["architecture"].annotation))
def test_every_architecture_gives_logits_of_every_kind(architecture: str, tiles: torch.Tensor) -> None:
    params = Segmentation(architecture=architecture, start="random")
    with torch.no_grad():
        assert new_network(params).eval()(tiles).shape == (2, 4, 64, 64)


def test_kinds_are_in_the_order_of_the_lesions(network: SegmentationNetwork, tiles: torch.Tensor) -> None:
    assert network.kinds == ["MA", "EX"]
    assert network.params == TINY
    assert network(tiles).shape == (2, 2, 64, 64)


def test_the_network_normalises_its_input(network: SegmentationNetwork, tiles: torch.Tensor) -> None:
    with torch.no_grad():
        unit = tiles.double() / 255
        config = timm.get_pretrained_cfg("test_efficientnet")
        mean, std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (config.mean, config.std)
        )
        expected = network.network(((unit - mean) / std).float())
        torch.testing.assert_close(network(tiles), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(unit.float()), network(tiles))


def test_imagenet_weights_reach_every_tensor_of_the_encoder() -> None:
    encoder = new_network(Segmentation()).network.encoder.model
    backbone = create_encoder("tf_efficientnet_lite0", "imagenet").eval()
    with torch.no_grad():
        inputs = torch.randn(1, 3, 64, 64)
        _, steps = backbone.forward_intermediates(inputs, indices=5)
        for own, theirs in zip(encoder.eval()(inputs), steps, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"])
def test_weights_are_found_whatever_timm_calls_the_trunk(name: str) -> None:
    backbone = timm.create_model(name, pretrained=False, num_classes=0).eval()
    trunk = timm.create_model(name, pretrained=False, features_only=True).eval()
    load_trunk(trunk, name, backbone.state_dict())
    inputs = torch.randn(1, 3, *backbone.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        expected = backbone.forward_intermediates(inputs, indices=1, intermediates_only=True)[-1]
        torch.testing.assert_close(trunk(inputs)[-1], expected)


def test_a_trunk_with_a_tensor_of_its_own_is_refused() -> None:
    trunk = timm.create_model("test_resnet", features_only=True)
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    del weights["layer2.0.conv1.weight"]
    with pytest.raises(
        UserError, match=r"^segmentation\.start: layer2\.0\.conv1\.weight of test_resnet has no"
    ):
        load_trunk(trunk, "test_resnet", weights)


def test_start_weights_may_be_a_file(tmp_path: Path) -> None:
    backbone = timm.create_model("test_efficientnet", num_classes=0)
    save_file(backbone.state_dict(), tmp_path / "encoder.safetensors")
    params = TINY.model_copy(update={"start": str(tmp_path / "encoder.safetensors")})
    trunk = new_network(params).network.encoder.model
    assert torch.equal(trunk.conv_stem.weight, backbone.conv_stem.weight)
    other = params.model_copy(update={"encoder": "tf_efficientnet_lite0"})
    with pytest.raises(
        UserError, match=r"encoder\.safetensors: .* another backbone than tf_efficientnet_lite0"
    ):
        new_network(other)


@pytest.mark.parametrize(("encoder", "architecture"), [("resnet1", "unet"), ("test_vit", "unet")])
def test_unsuitable_encoders_are_refused(encoder: str, architecture: str) -> None:
    with pytest.raises(
        UserError, match=rf"^segmentation\.encoder: {encoder} cannot be used with {architecture} "
    ):
        SegmentationNetwork(Segmentation(encoder=encoder, architecture=architecture))


def test_a_saved_network_gives_the_same(
    network: SegmentationNetwork, tiles: torch.Tensor, tmp_path: Path
) -> None:
    network.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "segmentation.json"]
    loaded = SegmentationNetwork.load(tmp_path, "cpu")
    assert not loaded.training
    assert (loaded.params, loaded.kinds) == (network.params, network.kinds)
    with torch.no_grad():
        assert torch.equal(loaded(tiles), network(tiles))
    about = json.loads((tmp_path / "segmentation.json").read_text())
    assert about["versions"]["timm"] == timm.__version__
    about["mean"] = [0.0, 0.0, 0.0]  # timm's values may change, the network's stay
    (tmp_path / "segmentation.json").write_text(json.dumps(about))
    assert SegmentationNetwork.load(tmp_path).mean == [0.0, 0.0, 0.0]


def test_missing_and_damaged_files_are_named(network: SegmentationNetwork, tmp_path: Path) -> None:
    network.save(tmp_path / "whole")

    def changed(name: str, content: bytes | None) -> Path:
        shutil.copytree(tmp_path / "whole", tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "copy" / name).unlink()
        if content is not None:
            (tmp_path / "copy" / name).write_bytes(content)
        return tmp_path / "copy"

    about = json.loads((tmp_path / "whole/segmentation.json").read_text())
    more = json.dumps(about | {"params": about["params"] | {"kinds": ["MA", "HE", "EX"]}}).encode()
    wrong = json.dumps(about | {"params": about["params"] | {"tile": 63}}).encode()
    for name, content, message in [
        ("segmentation.json", None, r"segmentation\.json: no such file; run the stage segmentation first"),
        ("segmentation.json", b"{", r"segmentation\.json: not the description of a network"),
        ("segmentation.json", b"{}", r"segmentation\.json: not the description of a network \('params'\)"),
        ("segmentation.json", wrong, r"not the description of a network .*tile"),
        ("segmentation.json", more, r"model\.safetensors: not the tensors of .*size mismatch"),
        ("model.safetensors", None, r"model\.safetensors: no such weights file"),
        ("model.safetensors", b"cut off", r"model\.safetensors: not a weights file"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            SegmentationNetwork.load(changed(name, content))
    tensors = load_file(tmp_path / "whole/model.safetensors")
    tensors.popitem()
    folder = changed("model.safetensors", None)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: not the tensors of .*Missing key"):
        SegmentationNetwork.load(folder)
