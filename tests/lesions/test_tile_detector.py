from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from drgrade.lesions import detector
from drgrade.lesions.detector import load_detector
from drgrade.lesions.tile_detector import TileDetector, fold_batch_norm, raise_threshold
from drgrade.params import Detector

CONFIG = "rtmdet-tiny_tiles"
SIDE = 96
SPREAD = 0.01  # of the class weights: some ten scores a tile come to lie above 0.05


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def stir(model: nn.Module) -> nn.Module:
    """Give every norm statistics and weights that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(0.1 * torch.randn(shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(shape, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector on disk, some of whose scores lie above 0.05."""
    detector.register()
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    config = detector.detector_config(Detector(config=CONFIG, start=None))
    torch.manual_seed(0)
    model = stir(MODELS.build(config.model))
    for head in model.bbox_head.rtm_cls:
        nn.init.normal_(head.weight, std=SPREAD)
        nn.init.constant_(head.bias, -4.6)
    folder = tmp_path_factory.mktemp("detector")
    torch.save(model.state_dict(), folder / "model.pth")
    (folder / "config.py").write_text(config.pretty_text)
    return folder


@pytest.fixture(scope="module")
def tiles() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8) for _ in range(4)]


def test_it_finds_what_mmdetection_finds(folder: Path, tiles: list[np.ndarray]) -> None:
    from mmdet.apis import inference_detector

    fast = TileDetector(folder, min_score=0.05)
    plain = fast.model
    plain.cfg = load_detector(folder)[1]
    plain.cfg.test_dataloader = plain.cfg.val_dataloader
    assert norms(plain) > 50
    assert norms(fast.network) == 0
    some = 0
    for tile, ours in zip(tiles, fast(tiles), strict=True):
        theirs = inference_detector(plain, tile[..., ::-1]).pred_instances.cpu().numpy()
        keep = theirs.scores > 0.05
        some += keep.sum()
        assert len(ours.scores) == keep.sum() < 100
        far = np.abs(ours.boxes[:, None] - theirs.bboxes[keep]).max(axis=2)
        far += 100 * (ours.labels[:, None] != theirs.labels[keep])
        partner = far.argmin(axis=1)  # scores that agree to rounding may change places
        assert sorted(partner) == list(range(keep.sum()))
        assert far.min(axis=1).max() < 0.05
        np.testing.assert_allclose(ours.scores, theirs.scores[keep][partner], atol=1e-4)
    assert some > 20


def test_the_same_batch_gives_the_same_bits(folder: Path, tiles: list[np.ndarray]) -> None:
    first, second = TileDetector(folder), TileDetector(folder)
    again = [second(tiles) for _ in range(3)][-1]
    for one, other in zip(first(tiles), again, strict=True):
        assert one.boxes.tobytes() == other.boxes.tobytes()
        assert one.scores.tobytes() == other.scores.tobytes()


@pytest.mark.parametrize("min_score", [0.0, 0.05, 0.2])
def test_the_threshold_only_spares_work(folder: Path, tiles: list[np.ndarray], min_score: float) -> None:
    every, few = TileDetector(folder), TileDetector(folder, min_score)
    for one, other in zip(every(tiles), few(tiles), strict=True):
        keep = one.scores >= min_score
        assert one.boxes[keep].tobytes() == other.boxes.tobytes()
        assert one.labels[keep].tobytes() == other.labels.tobytes()


def test_a_score_at_the_threshold_stays() -> None:
    class Head(nn.Module):
        test_cfg = type("Config", (dict,), {"__setattr__": dict.__setitem__, "__getattr__": dict.get})(
            score_thr=0.01
        )

    model = nn.Module()
    model.bbox_head = Head()
    raise_threshold(model, 0.05)
    limit = model.bbox_head.test_cfg["score_thr"]
    score = torch.tensor([0.05, 0.0499])
    assert (score > limit).tolist() == [True, False]
    raise_threshold(model, 0.0)
    assert model.bbox_head.test_cfg["score_thr"] == limit, "a config's own threshold is not lowered"


class Network(nn.Module):
    """Conv, norm, conv; the norm is applied where ``last`` says."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
        self.last = last

    def extract_feat(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        if self.last:
            return (self.norm(self.second(self.first(x))),)
        return (self.second(self.norm(self.first(x))),)


@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_only_a_norm_that_follows_its_convolution_is_folded(
    last: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = stir(Network(last))
    folded = fold_batch_norm(network)
    assert norms(folded) == int(last)
    assert ("Network: batch norms cannot be folded" in caplog.text) == last
    assert norms(network) == 1, "the detector itself is left as trained"
    picture = torch.rand(2, 3, 20, 20)
    torch.testing.assert_close(folded.extract_feat(picture), network.extract_feat(picture))
