from pathlib import Path

import pytest
import torch

from drgrade.errors import UserError
from drgrade.lesions import detector
from drgrade.lesions.start import is_detector, start_from
from drgrade.params import Detector


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """The published detector: MMDetection's Faster R-CNN with its names, the ResNet one level deeper."""
    detector.register()
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    config = detector.detector_config(Detector(config="faster-rcnn_r50_fpn_idrid", start=None))
    return MODELS.build(config.model)


def given_out(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its tensors under MMDetection's names, for COCO's 80 classes, with a ResNet's unused classifier."""
    tensors = {
        key.replace("backbone.net.", "backbone."): torch.full_like(value, 3)
        for key, value in model.state_dict().items()
    }
    for key, rows in (("fc_cls", 81), ("fc_reg", 320)):
        for part in ("weight", "bias"):
            old = tensors[f"roi_head.bbox_head.{key}.{part}"]
            tensors[f"roi_head.bbox_head.{key}.{part}"] = torch.zeros(rows, *old.shape[1:])
    return tensors | {"backbone.fc.weight": torch.zeros(2, 2)}


def test_all_but_the_classes_of_a_detector_is_taken(model: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "coco.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": given_out(model)}, path)
    assert is_detector(path)
    start_from(model, path)
    other = {key for key, value in model.state_dict().items() if not (value == 3).all()}
    assert other == {
        f"roi_head.bbox_head.fc_{name}.{part}" for name in ("cls", "reg") for part in ("weight", "bias")
    }


def test_a_backbone_is_no_detector(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet50.pth")
    assert not is_detector(tmp_path / "resnet50.pth")


def test_another_architecture_is_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    tensors = given_out(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del tensors["neck.fpn_convs.0.conv.weight"]
    torch.save(tensors, tmp_path / "less.pth")
    with pytest.raises(
        UserError, match=r"less\.pth: neck\.fpn_convs\.0\.conv\.weight is missing.*another arch"
    ):
        start_from(model, tmp_path / "less.pth")
    torch.save(given_out(model) | {"rpn_head.rpn_cls.bias": torch.zeros(9)}, tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"wide\.pth: rpn_head\.rpn_cls\.bias is \(9,\), not \(3,\)"):
        start_from(model, tmp_path / "wide.pth")
    assert all((before[key] == value).all() for key, value in model.state_dict().items()), "left as it was"
