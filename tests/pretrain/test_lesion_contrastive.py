import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import NTXentLoss

from drgrade.images.shards import write_store
from drgrade.images.store import CropStore
from drgrade.params import LesionContrastive
from drgrade.pretrain.base import METHODS, Material
from drgrade.pretrain.lesion_contrastive import window
from drgrade.tracking import NullRun


@given(st.floats(0, 500), st.floats(0, 500), st.floats(1, 128), st.floats(1, 128), st.integers(0, 1000))
def test_a_window_stays_inside_the_crop_and_holds_the_lesion(x, y, width, height, seed):
    box = np.array([min(x, 512 - width), min(y, 512 - height), min(x + width, 512), min(y + height, 512)])
    left, top = window(box, 128, 512, np.random.default_rng(seed))
    assert 0 <= left <= 384
    assert 0 <= top <= 384
    # a box of nearly 128 px between two pixels cannot be held whole: at most the partial pixel is cut
    assert left <= box[0] + 1
    assert left + 128 >= box[2] - 1
    assert top <= box[1] + 1
    assert top + 128 >= box[3] - 1


def test_offsets_are_uniform():
    box = np.array([200.0, 300.0, 216.0, 316.0])
    rng = np.random.default_rng(0)
    lefts = np.array([window(box, 128, 512, rng)[0] for _ in range(20_000)])
    counts = np.bincount(lefts - 88, minlength=113)
    assert (lefts.min(), lefts.max()) == (88, 200)  # x2 - 128 .. x1
    assert counts.min() > 100  # 177 expected at each of 113 places


def test_the_loss_is_nt_xent_by_brute_force():
    """Sections 7.4 and 16.6 of the paper's specification: cross-entropy over the 2N - 1 others."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator)
    both = torch.nn.functional.normalize(torch.cat([first, second]), dim=1).double()
    total = 0.0
    for anchor in range(10):
        others = [other for other in range(10) if other != anchor]
        logits = torch.stack([both[anchor] @ both[other] / 0.07 for other in others])
        total += float(torch.logsumexp(logits, 0) - both[anchor] @ both[(anchor + 5) % 10] / 0.07)
    assert abs(float(NTXentLoss(temperature=0.07)(first, second)) - total / 10) < 1e-5


def test_pretraining_learns_to_tell_photographs_apart(tmp_path, monkeypatch):
    """Photographs of one colour each: the loss of an untrained head on B = 8 is about log(15)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (8, 1, 1, 3))
    images = np.clip(colours + rng.integers(-20, 20, (8, 64, 64, 3)), 0, 255).astype(np.uint8)
    losses = []

    class Run(NullRun):
        def metrics(self, values, step=0):
            losses.append(values["loss"])

    params = LesionContrastive(epochs=6, batch_size=8, start="random", lr=0.05).model_dump()
    params["augment"] |= {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
    material = Material(images, np.arange(8), [np.array([[20.0, 20, 30, 30]])] * 8, 32)
    encoder = METHODS.get("lesion_contrastive")(params).fit(material, name="t", key="k", run=Run())
    assert losses[-1] < losses[0] - 0.5
    assert encoder.eval()(torch.zeros(1, 3, 32, 32).to(next(encoder.parameters()).device)).shape == (1, 1280)


def test_a_store_of_any_lossless_format_gives_the_same_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    params = LesionContrastive(epochs=1, batch_size=4, start="random").model_dump()
    rows, boxes = np.array([4, 0, 5, 2]), [np.array([[20.0, 20, 30, 30], [3, 5, 9, 8]])] * 4
    weights = []
    for source in ("array", "raw", "png"):
        if source != "array":
            write_store(images, tmp_path / f"{source}.json", source, shard_bytes=2 * 64 * 64 * 3)
        pictures = images if source == "array" else CropStore(tmp_path / f"{source}.json")
        encoder = METHODS.get("lesion_contrastive")(params).fit(
            Material(pictures, rows, boxes, 32), name=source, key="k", run=NullRun()
        )
        weights.append(encoder.state_dict())
    for other in weights[1:]:
        for key, tensor in weights[0].items():
            assert torch.equal(tensor, other[key]), key
