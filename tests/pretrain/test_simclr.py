import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from drgrade.images.augment import augment
from drgrade.images.dataset import CroppedDataset
from drgrade.images.scaled import scale
from drgrade.images.shards import write_store
from drgrade.params import SimCLR
from drgrade.pretrain.base import METHODS, Material
from drgrade.pretrain.contrastive import projector
from drgrade.pretrain.simclr import PhotographPairs
from drgrade.pretrain.stage import pretrain
from drgrade.schema import CROPS, INDEX, write_table

TINY = SimCLR(encoder="test_efficientnet", start="random", epochs=1, batch_size=3, input_size=32)


def module(rows, images):
    params = TINY.model_dump()
    return PhotographPairs(projector(params), Material(images, rows, [], 32), params)


def test_an_epoch_shows_every_photograph_once():
    pairs = module(np.array([5, 1, 2]), np.zeros((6, 48, 48, 3), np.uint8))
    for epoch in range(2):
        assert pairs.samples(epoch).tolist() == [5, 1, 2]


def test_views_are_two_changes_of_the_whole_photograph():
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    pairs = module(np.arange(3), images)
    samples = np.array([2, 0])
    views = pairs.views(pairs.prepare(samples, 3).pairs)
    assert views.shape == (4, 3, 32, 32)
    seeds = pairs.seeds(samples, 3)
    for place, row in enumerate(samples):
        whole = torch.from_numpy(scale(images[[row]], 32)).permute(0, 3, 1, 2)
        for view in (0, 1):
            alone = augment(whole, pairs.settings["augment"], [int(seeds[place, view])], 32)
            assert torch.allclose(alone[0], views[2 * view + place], atol=1e-6)
    assert not torch.allclose(views[:2], views[2:], atol=0.1)


@pytest.mark.parametrize("with_patches", [True, False])
def test_an_epoch_on_photographs_without_boxes(tmp_path, monkeypatch, with_patches):
    """From index to weights; only one of the photographs has a lesion, and one is for the test."""
    monkeypatch.setenv("DRGRADE_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    names = [f"i{number}" for number in range(7)]
    index = pd.DataFrame({"image_id": names, "subset": "grading", "split": "train", "status": "ok"})
    index.loc[6, "split"] = "test"
    write_table(index.reindex(columns=list(INDEX)), tmp_path / "index/index.parquet", INDEX)
    cut = pd.DataFrame({"image_id": names, "row": range(7)})
    write_table(cut.reindex(columns=list(CROPS)), tmp_path / "crop/crops.parquet", CROPS)
    images = np.random.default_rng(0).integers(0, 256, (7, 40, 40, 3)).astype(np.uint8)
    write_store(images, tmp_path / "crop/store.json", "raw")
    patches = tmp_path / "patches.pkl"
    patches.write_bytes(pickle.dumps({"train": {"i1": [(1.0, 2.0, 5.0, 6.0)]}, "val": {}}, protocol=4))
    seen = []
    pairs = PhotographPairs.pairs
    monkeypatch.setattr(
        PhotographPairs,
        "pairs",
        lambda self, rows, epoch: seen.extend(rows) or pairs(self, rows, epoch),
    )
    pretrain(
        "simclr", TINY.model_dump(), patch=16, by_fold=False, patches=patches if with_patches else None,
        data=CroppedDataset("own", tmp_path),
        manifest=tmp_path / "encoder.json", weights=tmp_path / "weights",
    )  # fmt: skip
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    tensors = load_file(tmp_path / "weights/encoder.safetensors")
    start = projector(TINY.model_dump()).encoder.state_dict()
    assert tensors.keys() == start.keys()
    assert not torch.equal(tensors["conv_stem.weight"], start["conv_stem.weight"])


def test_whole_photographs_need_no_boxes():
    assert METHODS.get("simclr").needs_boxes is False
