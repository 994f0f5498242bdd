"""Every config that is shipped trains a step and predicts, on torchvision's and PyTorch's operators."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from drgrade.encoders import PACKAGED, create_encoder
from drgrade.errors import UserError
from drgrade.lesions import detector
from drgrade.lesions.amp import half_features
from drgrade.lesions.coco import Coco, rectangles
from drgrade.lesions.configs import backbones, config_digest
from drgrade.lesions.tiles import Tile
from drgrade.params import Detector
from drgrade.seeding import seed_everything, torch_threads

FOLDER = Path(__file__).parents[2] / "workflow/detectors"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.py"))
SIDE = 64
NO_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: detectors on the GPU untested"
)
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six grey tiles with a bright square (EX); the first has a dark one (HE) too, the last has none."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "boxes"
    (folder / "images").mkdir(parents=True)
    coco = Coco()
    for number in range(6):
        pixels = np.full((SIDE, SIDE, 3), 110, np.uint8)
        found = {}
        for lesion, value, x, shown in (("EX", 250, 4 + number, number < 5), ("HE", 10, 36, number == 0)):
            if shown:
                pixels[20:44, x : x + 24] = value
                found[lesion] = rectangles(np.array([[x, 20, x + 24, 44]], float))
        encoded = cv2.imencode(".png", pixels)[1].tobytes()
        coco.add(f"{number}.png", encoded, Tile(pixels, (0, 0), (1.0, 1.0), (0, 0)), found)
        (folder / "images" / f"{number}.png").write_bytes(encoded)
    for split in ("train", "val"):
        coco.write(folder / f"{split}.json")
    return folder


def config_of(name: str, boxes: Path, **values: Any) -> Any:
    """The leaf with its files in place, and photographs that are never enlarged."""
    from mmengine.registry import init_default_scope

    detector.register()
    init_default_scope("mmdet")
    config = detector.detector_config(Detector(config=name, start=None, **values))
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.ann_file = str(boxes / "train.json")
        loader.dataset.data_prefix = {"img": str(boxes / "images")}
        for step in loader.dataset.pipeline:
            if "scale" in step:
                step["scale"] = (SIDE, SIDE)
    return config


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_step_and_a_prediction(name: str, device: str, boxes: Path) -> None:
    from mmdet.registry import MODELS
    from mmengine.optim import build_optim_wrapper
    from mmengine.runner import Runner

    torch.set_num_threads(torch_threads())
    seed_everything(0)
    config = config_of(name, boxes, batch_size=2, lr=0.00012, epochs=5, seed=42)
    model = MODELS.build(config.model)
    model.init_weights()
    model.to(device)
    optimiser = build_optim_wrapper(model, config.optim_wrapper)
    loader = Runner.build_dataloader(config.train_dataloader)
    check_values(config, optimiser, loader)

    batch = next(iter(loader))
    assert [tuple(picture.shape) for picture in batch["inputs"]] == [(3, SIDE, SIDE)] * 2
    before = {key: value.clone() for key, value in model.named_parameters() if value.requires_grad}
    losses = model.train().train_step(batch, optimiser)
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert losses["loss"] > 0
    moved = {key for key, value in model.named_parameters() if key in before and not value.equal(before[key])}
    still = {key.split(".")[0] for key in before} - {key.split(".")[0] for key in moved}
    assert still <= {"level_embed"}, "which steers DINO's attention, flat at the start"

    tiles = next(iter(Runner.build_dataloader(config.val_dataloader)))
    with torch.inference_mode():
        found = model.eval().test_step(tiles)
    assert [sample.img_id for sample in found] == [1, 2]
    for sample in found:
        result = sample.pred_instances
        assert result.bboxes.shape == (len(result.scores), 4)
        assert len(result) <= 100
        assert set(result.labels.tolist()) <= {0, 1, 2, 3}

    if "r50" in name:  # slow, and a Faster R-CNN as the smaller one is
        return
    full = losses_of(model.train(), batch)
    half_features(model, torch.bfloat16)
    for name, value in losses_of(model, batch).items():
        torch.testing.assert_close(value, full[name], rtol=0.1, atol=0.1, msg=name)
    losses = model.train_step(batch, optimiser)
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert all(value.dtype == torch.float32 for value in model.parameters())


def losses_of(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Each loss, those of the levels of a pyramid added up; anchors are sampled alike each time."""
    seed_everything(1)
    with torch.no_grad():
        found = model(**model.data_preprocessor(batch, True), mode="loss")
    return {name: sum(value) if isinstance(value, list) else value for name, value in found.items()}


def check_values(config: Any, optimiser: Any, loader: Any) -> None:
    """What the caller set in params is what the optimiser, the loader and the loop have."""
    assert config.train_cfg.max_epochs == 5
    assert [plan.end for plan in config.param_scheduler if plan.get("by_epoch", True)] == [5]
    assert config.randomness.seed == 42
    assert config.custom_hooks == [{"type": "ReseedHook", "seed": 42}]
    assert max(group["lr"] for group in optimiser.param_groups) == 0.00012
    assert loader.batch_size == config.val_dataloader.batch_size == 2
    assert loader.dataset.seed == loader.sampler.seed == 42


def test_the_stage_trains_on_balanced_tiles_from_packaged_weights(boxes: Path, tmp_path: Path) -> None:
    """The whole stage, and its files read back; what is frozen is still the packaged weights."""
    from drgrade.lesions.tile_detector import TileDetector

    params = Detector(
        config="faster-rcnn_lite0_fpn_tiles", start="imagenet", epochs=1, batch_size=3, lr=2e-4,
        background_tiles=1.0,
    )  # fmt: skip
    detector.train_detector(boxes, params, tmp_path / "out", SimpleNamespace(metrics=lambda *_, **__: None))
    find = TileDetector(tmp_path / "out")
    (found,) = find([cv2.imread(str(boxes / "images/0.png"))[..., ::-1]])
    assert found.boxes.shape == (len(found.scores), 4)
    packaged = create_encoder(PACKAGED, "imagenet", features_only=True).state_dict()
    trained = find.model.backbone.net.state_dict()
    assert trained["conv_stem.weight"].cpu().equal(packaged["conv_stem.weight"])
    assert not trained["blocks.2.0.conv_pw.weight"].cpu().equal(packaged["blocks.2.0.conv_pw.weight"])


def test_anchors_fit_small_lesions() -> None:
    """Anchors of tiles are 8 to 64 px square in area, the paper's 32 to 512."""
    from mmdet.registry import TASK_UTILS

    detector.register()
    for name, areas in (
        ("faster-rcnn_r50_fpn_tiles", [8, 16, 32, 64]),
        ("faster-rcnn_lite0_fpn_tiles", [8, 16, 32, 64]),
        ("faster-rcnn_r50_fpn_idrid", [32, 64, 128, 256, 512]),
    ):
        config = detector.detector_config(Detector(config=name, start=None))
        anchors = TASK_UTILS.build(config.model.rpn_head.anchor_generator).base_anchors
        sides = [((a[:, 2:] - a[:, :2]).prod(dim=1) ** 0.5).tolist() for a in anchors]
        assert sides == [pytest.approx([side] * 3, rel=1e-5) for side in areas]


def test_a_digest_follows_what_a_config_builds_on_but_not_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "workflow/detectors"
    (folder / "_base_").mkdir(parents=True)
    leaf, base = folder / "own.py", folder / "_base_/base.py"
    base.write_text("model = dict(backbone=dict(name='resnet50'))\n")
    leaf.write_text(
        "_base_ = ['_base_/base.py', 'mmdet::x.py']\nmodel = dict(backbone=dict(name='resnet18'))\n"
    )
    (folder / "other.py").write_text("_base_ = '_base_/base.py'\n")
    first = config_digest("own")
    assert backbones("own") == ["resnet18", "resnet50"]
    assert backbones("other") == ["resnet50"]
    leaf.write_text("# the same\n" + leaf.read_text())
    assert config_digest("own") == first
    base.write_text("model = dict(backbone=dict(name='resnet34'))\n")
    assert config_digest("own") != first
    with pytest.raises(UserError, match=r"detector\.config: no 'none' in"):
        config_digest("none")
