import hashlib
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from drgrade.encoders import (
    create_encoder,
    imagenet_file,
    in_timm_order,
    load_start,
    normalisation,
    placed_file,
    read_tensors,
    start_record,
    width,
)
from drgrade.errors import UserError

NAME = "tf_efficientnet_lite0"


def test_packaged_imagenet_weights_know_their_classes():
    """scikit-learn ships photographs of the Summer Palace (ImageNet 698, palace) and a daisy (985)."""
    model = timm.create_model(NAME, pretrained=False).eval()
    load_start(model, NAME, "imagenet")
    squares = [picture[:, 106:533] for picture in load_sample_images().images]
    small = np.stack([cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA) for square in squares])
    with torch.no_grad():
        logits = model(torch.from_numpy(small).permute(0, 3, 1, 2) / 255 * 2 - 1)
    assert logits.argmax(1).tolist() == [698, 985]


def test_features_only_and_pooled_share_the_trunk():
    pooled = create_encoder(NAME, "imagenet")
    maps = create_encoder(NAME, "imagenet", features_only=True)
    assert torch.equal(pooled.conv_stem.weight, maps.conv_stem.weight)
    assert normalisation(NAME) == ([0.5] * 3, [0.5] * 3)


TINY = "test_vit"


def vit(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model(TINY, num_classes=0).state_dict()


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def dino(**parts) -> dict:
    """The layout of DINO's full checkpoints: both networks wrapped, with heads, and the rest of a run."""
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_v": torch.ones(3, 2)}
    teacher = under("backbone.", vit(0)) | head
    student = under("module.", under("backbone.", vit(1)) | head)
    rest = {
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": Namespace(arch="vit"),
    }
    return {"student": student, "teacher": teacher, "dino_loss": {"center": torch.zeros(1, 3)}} | rest | parts


FORMS = {
    "bare": vit(),
    "module": under("module.", vit()),
    "net": under("net.", vit()),
    "backbone": under("module.backbone.", vit()),
    "lightning": {
        "state_dict": under("network.encoder.", vit()),
        "epoch": 1,
        "pytorch-lightning_version": "2",
    },
    "timm": {"model": vit() | {"head.weight": torch.ones(10, 64), "head.bias": torch.ones(10)}},
    "contrastive": under("encoder.", vit())
    | {"head.0.weight": torch.ones(4, 64), "projector.bias": torch.ones(1)},
    "dino": dino(),
    "dino_bare": {"teacher": under("module.", under("backbone.", vit()))},
}


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_are_read(tmp_path, form):
    torch.save(FORMS[form], tmp_path / "weights.pth")
    loaded = create_encoder(TINY, str(tmp_path / "weights.pth")).state_dict()
    assert loaded.keys() == vit().keys()
    assert all(torch.equal(loaded[key], value) for key, value in vit().items())


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "encoder."])
def test_wrapped_weights_are_found(tmp_path, prefix):
    source = create_encoder(NAME, "random").state_dict()
    save_file(under(prefix, source), tmp_path / "w.safetensors")
    loaded = create_encoder(NAME, str(tmp_path / "w.safetensors")).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.items())


def numbered(create, *args, **options) -> dict[str, torch.Tensor]:
    """A network's state dict with tensor i full of i."""
    with torch.device("meta"):
        state = create(*args, **options).state_dict()
    return {
        key: torch.full(value.shape, number, dtype=value.dtype)
        for number, (key, value) in enumerate(state.items())
    }


def test_torchvisions_resnet_is_timms_whether_or_not_batchnorm_counted(tmp_path):
    source = numbered(torchvision.models.resnet50, weights=None)
    old = {key: value for key, value in source.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(source)
    torch.save(old, tmp_path / "resnet50.pth")
    loaded = create_encoder("resnet50", str(tmp_path / "resnet50.pth")).state_dict()
    assert {key for key in old if key not in loaded} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(loaded[key], value) for key, value in old.items() if key in loaded)


def refused(tmp_path, content, name=TINY) -> str:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        create_encoder(name, str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(tmp_path / "w.pth: "))


def test_weights_that_do_not_fit_are_refused_with_the_first_name(tmp_path):
    other = f"these weights belong to another backbone than {TINY}"
    assert refused(tmp_path, under("x.", vit())) == f"no tensor matches (first: x.cls_token); {other}"
    less = {key: value for key, value in vit().items() if key != "blocks.0.attn.qkv.bias"}
    expected = f"1 of {len(vit())} tensors are missing (first: blocks.0.attn.qkv.bias); {other}"
    assert refused(tmp_path, less) == expected
    wrong = vit() | {"norm.bias": torch.ones(3)}
    assert refused(tmp_path, wrong) == f"norm.bias is (3,), not (64,); {other}"
    more = vit() | {"blocks.9.norm1.weight": torch.ones(64)}
    assert refused(tmp_path, more) == f"blocks.9.norm1.weight has no place; {other}"
    both = under("module.", vit()) | under("backbone.", vit(1))
    expected = "module.cls_token and backbone.cls_token both stand for cls_token; keep one network's"
    assert refused(tmp_path, both) == expected


def test_a_deeper_network_of_the_same_family_is_not_taken_for_this_one(tmp_path):
    """Every tensor of a ResNet-18 is in a ResNet-34, with its shape."""
    deep = numbered(timm.create_model, "resnet34", num_classes=0)
    assert "layer1.2.conv1.weight has no place" in refused(tmp_path, deep, "resnet18")


def test_a_trunk_leaves_the_rest_of_its_backbone_over(tmp_path):
    source = create_encoder(NAME, "random").state_dict()
    save_file(source, tmp_path / "w.safetensors")
    trunk = create_encoder(NAME, str(tmp_path / "w.safetensors"), features_only=True, out_indices=(1, 2))
    assert len(trunk.state_dict()) < len(source)
    assert all(torch.equal(source[key], value) for key, value in trunk.state_dict().items())


@pytest.mark.parametrize(("content", "reason"), [
    (torch.ones(2), "holds no tensors by name; save a state dict"),
    ({"state_dict": {}}, "holds no tensors by name; save a state dict"),
    (torch.nn.Linear(1, 1), "holds more than tensors (UnpicklingError); save a state dict"),
    ({"model": torch.nn.Linear(1, 1)}, "holds more than tensors (UnpicklingError); save a state dict"),
    (dino(args=Path("out")), "holds more than tensors (UnpicklingError); save a state dict"),
])  # fmt: skip
def test_what_is_not_a_state_dict_is_refused(tmp_path, content, reason):
    assert refused(tmp_path, content) == reason


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="these weights belong to another backbone than resnet18"):
        create_encoder("resnet18", str(imagenet_file(NAME)))
    with pytest.raises(UserError, match="no such weights file"):
        create_encoder(NAME, str(tmp_path / "gone.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pth"):
        read_tensors(tmp_path / "text.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match=r"empty\.pth: not a weights file"):
        read_tensors(tmp_path / "empty.pth")
    with pytest.raises(UserError, match=r"put timm's ImageNet weights of resnet18 there"):
        create_encoder("resnet18", "imagenet")


def test_tensors_in_order_must_be_all_of_timm_and_in_its_order():
    own = timm.create_model(TINY).state_dict()
    theirs = {f"layer{place}": value for place, value in enumerate(own.values())}
    assert in_timm_order(theirs, TINY, Path("w.pth")).keys() == own.keys()
    first, *rest = theirs
    for names in (rest, [*rest, first]):
        with pytest.raises(UserError, match=rf"^w\.pth: not the {len(own)} tensors of {TINY} in timm"):
            in_timm_order({name: theirs[name] for name in names}, TINY, Path("w.pth"))


def test_a_vision_transformer_takes_pictures_of_other_sizes():
    encoder = create_encoder("test_vit", None)
    assert encoder(torch.zeros(1, 3, 48, 48)).shape == (1, width(encoder))


def test_start_weights_are_recorded_by_their_digest(tmp_path):
    packaged = hashlib.sha256(imagenet_file(NAME).read_bytes()).hexdigest()
    assert start_record(NAME, "imagenet", 1) == {"weights": "imagenet", "sha256": packaged}
    assert start_record(NAME, None, 4) == start_record(NAME, "random", 4) == {"weights": "random", "seed": 4}
    with pytest.raises(UserError, match=r"gone\.pth: no such weights file"):
        start_record(NAME, str(tmp_path / "gone.pth"), 1)


def test_imagenet_weights_that_lie_in_the_folder_come_before_packaged_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert placed_file(NAME) is None
    assert imagenet_file(NAME).is_absolute()  # of the package
    own = tmp_path / "data/weights" / f"{NAME}.pth"
    own.parent.mkdir(parents=True)
    own.touch()
    assert placed_file(NAME) == imagenet_file(NAME) == own.relative_to(tmp_path)
