import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from drgrade.encoders import create_encoder, imagenet_file, load_start, normalisation, read_tensors
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


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "encoder."])
def test_wrapped_weights_are_found(tmp_path, prefix):
    source = create_encoder(NAME, "random")
    save_file({prefix + key: value for key, value in source.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = create_encoder(NAME, str(tmp_path / "w.safetensors"))
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="these weights belong to another backbone"):
        create_encoder("resnet18", str(imagenet_file(NAME)))
    with pytest.raises(UserError, match="no such weights file"):
        create_encoder(NAME, str(tmp_path / "gone.pth"))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        read_tensors(tmp_path / "module.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pth"):
        read_tensors(tmp_path / "text.pth")
    with pytest.raises(UserError, match=r"put timm's ImageNet weights of resnet18 there"):
        create_encoder("resnet18", "imagenet")
