import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from drgrade.errors import UserError
from drgrade.lesions import detector
from drgrade.lesions.coco import Coco, rectangles
from drgrade.lesions.detector import keep_background, load_detector, stretch_schedule, train_detector
from drgrade.lesions.tiles import Tile
from drgrade.params import Detector

SMALL = Detector(start=None, epochs=2, batch_size=2, lr=0.002, background_tiles=1.0, seed=3)
SIDE = 96


class Record:
    """Keeps what a run is told; stops the training when it is told of a certain epoch and metric."""

    def __init__(self, stop_at: tuple[int, str] | None = None) -> None:
        self.stop_at = stop_at
        self.rows: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        if any((step, name) == self.stop_at for name in values):
            raise KeyboardInterrupt
        self.rows.append((step, dict(values)))


def paint_tiles(folder: Path, count: int) -> Path:
    """Grey tiles with a bright square (EX) and a dark one (HE) on each but the last."""
    (folder / "images").mkdir(parents=True)
    coco = Coco()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.full((SIDE, SIDE, 3), 110, np.uint8)
        boxes = {}
        if number < count - 1:
            for lesion, value, low in (("EX", 250, 4), ("HE", 10, 52)):
                x, y = rng.integers(low, low + 16), rng.integers(4, 64)
                pixels[y : y + 24, x : x + 24] = value
                boxes[lesion] = rectangles(np.array([[x, y, x + 24, y + 24]], float))
        encoded = cv2.imencode(".png", pixels)[1].tobytes()
        coco.add(f"{number}.png", encoded, Tile(pixels, (0, 0), (1.0, 1.0), (0, 0)), boxes)
        (folder / "images" / f"{number}.png").write_bytes(encoded)
    for split in ("train", "val"):
        coco.write(folder / f"{split}.json")
    return folder


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five tiles, in a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    return paint_tiles(tmp_path / "boxes", 5)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_training_ends_as_if_undisturbed(boxes: Path, tmp_path: Path) -> None:
    undisturbed = Record()
    train_detector(boxes, SMALL, tmp_path / "whole", undisturbed)
    with pytest.raises(KeyboardInterrupt):
        train_detector(boxes, SMALL, tmp_path / "killed", Record(stop_at=(2, "train_loss")))
    with pytest.raises(KeyboardInterrupt):  # and again, after its last checkpoint
        train_detector(boxes, SMALL, tmp_path / "killed", Record(stop_at=(2, "val_AP50")))
    assert not (tmp_path / "killed").exists()
    resumed = Record()
    train_detector(boxes, SMALL, tmp_path / "killed", resumed)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sorted(contents(tmp_path / "whole")) == ["config.py", "metrics.json", "model.pth"]
    assert not list(detector.CACHE.glob("detector-*")), "the work folder goes when its job is done"
    assert resumed.rows == undisturbed.rows[-1:], "no epoch is done again, only the validation"
    assert str(tmp_path) not in (tmp_path / "whole/config.py").read_text()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory where a training from a weights file was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    paint_tiles(folder / "boxes", 5)
    write_backbone(folder / "start.pth", 1.0)
    with contextlib.chdir(folder), pytest.raises(KeyboardInterrupt):
        train_detector(Path("boxes"), STARTED, Path("out"), Record(stop_at=(2, "train_loss")))
    assert [path.name for path in folder.glob(".cache/drgrade/detector-*/*.pth")] == ["epoch_1.pth"]
    return folder


STARTED = SMALL.model_copy(update={"start": "start.pth"})


def write_backbone(path: Path, factor: float) -> None:
    """ImageNet's weights, those of the first layer changed a little."""
    from drgrade.encoders import create_encoder

    tensors = create_encoder("tf_efficientnet_lite0", "imagenet").state_dict()
    torch.save(tensors | {"conv_stem.weight": tensors["conv_stem.weight"] * factor}, path)


def edit_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def new_config(folder: Path) -> None:
    leaf = folder / "workflow/detectors/rtmdet-tiny_tiles.py"
    leaf.parent.mkdir(parents=True)
    base = detector.config_file("rtmdet-tiny_tiles")
    leaf.write_text(f"_base_ = {str(base)!r}\noptim_wrapper = dict(optimizer=dict(weight_decay=0.5))\n")


EDITS: dict[str, Any] = {
    "fraction": {"background_tiles": 0.0},
    "seed": {"seed": 4},
    "lr": {"lr": 0.001},
    "split": lambda folder: edit_json(folder / "boxes/train.json", lambda coco: coco["images"].pop(0)),
    "validation": lambda folder: edit_json(folder / "boxes/val.json", lambda coco: coco["images"].pop(0)),
    "pixels of a tile": lambda folder: edit_json(
        folder / "boxes/train.json", lambda coco: coco["images"][0].update(sha256="of other pixels")
    ),
    "start weights": lambda folder: write_backbone(folder / "start.pth", 1.01),
    "config": new_config,
    "code": lambda folder: None,
}


@pytest.mark.parametrize("edit", [None, *EDITS])
def test_a_killed_training_resumes_only_as_it_was(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str | None
) -> None:
    """It is stopped again after its next epoch: the second if it was resumed, else the first."""
    shutil.copytree(killed, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    change = EDITS.get(str(edit), {})
    params = STARTED.model_copy(update=change) if isinstance(change, dict) else STARTED
    if callable(change):
        change(tmp_path / "copy")
    if edit == "code":
        monkeypatch.setattr("drgrade.resume.software", lambda *parts: "another code")
    run = Record(stop_at=(2 if edit is None else 1, "train_loss"))
    with pytest.raises(KeyboardInterrupt):  # of the epoch that is expected next
        train_detector(Path("boxes"), params, Path("out"), run)
    assert run.rows == []


def test_a_whole_detector_is_a_start(boxes: Path, tmp_path: Path) -> None:
    """Weights that may not move end as they were given, not as the network initialises itself."""
    one = SMALL.model_copy(update={"epochs": 1})
    train_detector(boxes, one, tmp_path / "first", Record())
    start = str(tmp_path / "first/model.pth")
    train_detector(
        boxes, one.model_copy(update={"start": start, "lr": 1e-12, "seed": 9}), tmp_path / "second", Record()
    )
    first, second = (torch.load(tmp_path / name / "model.pth") for name in ("first", "second"))
    weights = [key for key in first if key.endswith("weight")]
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in weights)


def test_another_seed_gives_another_detector(boxes: Path, tmp_path: Path) -> None:
    one = SMALL.model_copy(update={"epochs": 1})
    for seed in (3, 4):
        train_detector(boxes, one.model_copy(update={"seed": seed}), tmp_path / str(seed), Record())
    assert contents(tmp_path / "3")["model.pth"] != contents(tmp_path / "4")["model.pth"]


def test_it_learns_and_predicts_what_mmdetection_would(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Record()
    params = SMALL.model_copy(update={"start": "imagenet", "epochs": 24})
    train_detector(boxes, params, tmp_path / "out", run)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["AP50"] > 0.6
    assert metrics["lesions"]["MA"]["AP50"] is None
    assert metrics["lesions"]["EX"]["boxes"] == 4
    losses = [values["train_loss"] for _, values in run.rows if "train_loss" in values]
    assert len(losses) == 24
    assert np.isfinite(losses).all()
    assert run.rows[-1][0] == 24
    assert run.rows[-1][1]["val_AP50"] == pytest.approx(metrics["AP50"])
    check_predictions(tmp_path / "out", boxes / "images")
    check_half(tmp_path / "out", boxes / "images", monkeypatch)


def check_predictions(folder: Path, images: Path) -> None:
    """Batches of tiles in memory against MMDetection's own way, file by file."""
    from mmdet.apis import inference_detector

    from drgrade.lesions.tile_detector import TileDetector

    find = TileDetector(folder)
    paths = sorted(images.iterdir())
    found = find([cv2.imread(str(path))[..., ::-1] for path in paths])
    find.model.cfg = load_detector(folder)[1]
    find.model.cfg.test_dataloader = find.model.cfg.val_dataloader
    for path, ours in zip(paths, found, strict=True):
        theirs = inference_detector(find.model, str(path)).pred_instances.cpu().numpy()
        keep, their_keep = ours.scores > 0.05, theirs.scores > 0.05
        np.testing.assert_allclose(ours.scores[keep], theirs.scores[their_keep], atol=1e-4)
        np.testing.assert_allclose(ours.boxes[keep], theirs.bboxes[their_keep], atol=0.05)
        np.testing.assert_array_equal(ours.labels[keep], theirs.labels[their_keep])


def check_half(folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the features in bfloat16, as on a GPU, lesions are found where they were."""
    from drgrade.lesions.tile_detector import TileDetector

    tiles = [cv2.imread(str(path))[..., ::-1] for path in sorted(images.iterdir())]
    full = TileDetector(folder)(tiles)
    monkeypatch.setattr("drgrade.device.half_precision", lambda: torch.bfloat16)
    for one, other in zip(full, TileDetector(folder)(tiles), strict=True):
        sure, also = one[one.scores > 0.3], other[other.scores > 0.3]
        np.testing.assert_array_equal(also.labels, sure.labels)
        np.testing.assert_allclose(also.scores, sure.scores, atol=0.05)
        np.testing.assert_allclose(also.boxes, sure.boxes, atol=0.5)


def test_the_published_detector_trains(boxes: Path) -> None:
    """Faster R-CNN of the paper takes a step: unmodified MMDetection on torchvision's operators."""
    detector.register()
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    config = detector.detector_config(Detector(config="faster-rcnn_r50_fpn_idrid", start=None))
    model = MODELS.build(config.model).train()
    losses, gradient = one_step(model, boxes)
    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"} <= set(losses)
    assert all(np.isfinite(value) for value in losses.values())
    assert gradient > 0
    frozen = {name for name, value in model.backbone.named_parameters() if not value.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"conv1", "bn1", "layer1"}
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


def one_step(model: Any, boxes: Path) -> tuple[dict[str, float], float]:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    picture = torch.from_numpy(cv2.imread(str(boxes / "images/0.png"))).permute(2, 0, 1)
    sample = DetDataSample(metainfo={"img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE)})
    row = json.loads((boxes / "train.json").read_text())["annotations"][0]
    x, y, width, height = row["bbox"]
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[x, y, x + width, y + height]]), labels=torch.tensor([row["category_id"] - 1])
    )
    data = model.data_preprocessor({"inputs": [picture], "data_samples": [sample]}, True)
    total, losses = model.parse_losses(model(**data, mode="loss"))
    total.backward()
    weights = model.roi_head.bbox_head.shared_fcs[0].weight
    return {name: float(value.detach()) for name, value in losses.items()}, float(weights.grad.abs().sum())


def test_augmentation_depends_on_seed_epoch_and_tile_alone(boxes: Path) -> None:
    detector.register()
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    config = detector.detector_config(SMALL).train_dataloader.dataset
    tiles = DATASETS.build(
        config | {"ann_file": str(boxes / "train.json"), "data_prefix": {"img": str(boxes / "images")}}
    )

    def picture(index: int, epoch: int) -> bytes:
        tiles.epoch = epoch
        np.random.seed(random.randrange(1000))
        return tiles[index]["inputs"].numpy().tobytes()

    assert len({picture(0, 0) for _ in range(5)}) == 1
    assert len({picture(0, epoch) for epoch in range(20)}) == 4, "as it is, and three flips"


def test_schedules_stretch_with_the_epochs() -> None:
    detector.register()
    from mmengine.config import Config

    config = Config.fromfile(detector.config_file("faster-rcnn_r50_fpn_idrid"))
    assert config.param_scheduler[1].milestones == [50, 80]
    stretch_schedule(config, 20)
    assert config.train_cfg.max_epochs == 20
    assert config.param_scheduler[1].milestones == [10, 16]
    assert config.param_scheduler[1].end == 20
    assert config.param_scheduler[0].end == 100, "warm-up counts steps"


def test_background_is_thinned_and_lesions_stay() -> None:
    coco = {"images": [{"id": i} for i in range(42)], "annotations": [{"image_id": 7}, {"image_id": 9}]}
    kept = [{image["id"] for image in keep_background(coco, 0.25, seed)["images"]} for seed in (1, 1, 2)]
    assert all({7, 9} <= ids for ids in kept)
    assert [len(ids) for ids in kept] == [2 + 10] * 3, "40 tiles without a lesion, a quarter of them"
    assert kept[0] == kept[1] != kept[2]
    assert len(keep_background(coco, 0.0, 1)["images"]) == 2


def test_mistakes_are_named(boxes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no 'yolo' in .*; there is dino_lite0_tiles, faster-rcnn_"):
        train_detector(boxes, SMALL.model_copy(update={"config": "yolo"}), tmp_path / "out", Record())
    with pytest.raises(UserError, match=r"nowhere/train\.json: no such file"):
        train_detector(Path("nowhere"), SMALL, tmp_path / "out", Record())
    with pytest.raises(UserError, match=r"out/config\.py: no such file"):
        load_detector(tmp_path / "out")


def test_a_backbone_of_mmdetection_takes_no_start_weights_of_timm(boxes: Path, tmp_path: Path) -> None:
    base = detector.config_file("faster-rcnn_r50_fpn_idrid")
    own = tmp_path / "workflow/detectors/own.py"
    own.parent.mkdir(parents=True)
    own.write_text(
        f"_base_ = {str(base)!r}\nmodel = dict(backbone=dict(_delete_=True, type='ResNet', depth=50))\n"
    )
    params = SMALL.model_copy(update={"config": "own", "start": "imagenet"})
    with pytest.raises(UserError, match=r"start: ResNet of own loads its own weights .* to null"):
        train_detector(boxes, params, tmp_path / "out", Record())
