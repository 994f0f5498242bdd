"""Other ways to grade real eyes from a frozen network: attention over tiles, and ordinal regression.

    DRGRADE_IDRID_ROOT=/path/to/IDRiD uv run python benchmarks/tile_attention.py

Each is compared with the regression of ``params/idrid-official.yaml`` on the same network
(EfficientNet-Lite0) and the same folds as in real_eyes.py, whose folder and features it uses, and runs first
if they are not there. Attention is the gated attention of Ilse et al., ICML 2018, over 16 tiles of 256 px of
the crop of 1024 px, trained on the squared error; its sizes were fixed before the first run. The last line is
one JSON object: the QWK with attention, beside that of the regression at 640 px.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from checkout import checkout
from real_eyes import (
    FOLDS,
    LITE0,
    PARAMS,
    SEEDS,
    WORK,
    Eyes,
    Scores,
    View,
    by_ridge,
    compare,
    out_of_fold,
    report_gain,
    shipped,
)
from torch import Tensor, nn

from drgrade.encoders import create_encoder
from drgrade.files import atomic_write
from drgrade.grading.features import Frozen, features
from drgrade.grading.pooled import PooledLayers

TILE, HIDDEN, EPOCHS, BATCH = 256, 64, 60, 32
INITIALISATIONS = 3


class Attention(nn.Module):
    """Score of a photograph from its tiles: gated attention (Ilse et al., 2018, equation 9).

    Args:
        width: features of a tile.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(0.25))
        self.what, self.gate = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.weigh, self.head = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        """Scores (B,) of tiles (B, T, D)."""
        found = self.embed(tiles)
        attention = self.weigh(self.what(found).tanh() * self.gate(found).sigmoid()).softmax(dim=1)
        scores: Tensor = self.head((attention * found).sum(dim=1))
        return scores[:, 0]


def trained(tiles: Tensor, grades: Tensor, seed: int) -> Attention:
    """An attention network for standardised tiles (n, T, D) and grades (n,)."""
    torch.manual_seed(seed)
    network = Attention(tiles.shape[2])
    nn.init.constant_(network.head.bias, float(grades.mean()))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    steps = EPOCHS * -(-len(tiles) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(tiles)).split(BATCH):
            loss = nn.functional.mse_loss(network(tiles[batch]), grades[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def each_fold(eyes: Eyes) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Number of the division, and which photographs train and test."""
    for number, fold in enumerate(eyes.folds):
        for part in range(FOLDS):
            yield number, fold != part, fold == part


@torch.no_grad()
def scores_of(networks: list[Attention], tiles: Tensor) -> np.ndarray:
    """Mean scores (n,)."""
    found: np.ndarray = torch.stack([network(tiles) for network in networks]).mean(dim=0).numpy()
    return found


def by_attention(eyes: Eyes, tiles: np.ndarray) -> Scores:
    """Scores of left-out photographs by attention over their tiles (n, T, D)."""
    torch.set_num_threads(1)  # the network is too small for more
    found = np.empty((len(SEEDS), len(tiles)))
    grades = torch.from_numpy(eyes.grades.astype(np.float32))
    for number, train, test in each_fold(eyes):
        mean, std = tiles[train].mean(axis=(0, 1)), tiles[train].std(axis=(0, 1)).clip(1e-6)
        x = torch.from_numpy((tiles - mean) / std)
        networks = [trained(x[train], grades[train], seed) for seed in range(INITIALISATIONS)]
        found[number, test] = scores_of(networks, x[test])
    return found.clip(0, 4)


def ordinal(eyes: Eyes, x: np.ndarray) -> Scores:
    """The same by four logistic regressions: is the grade above 0, 1, 2, 3 (Frank and Hall, ECML 2001)?"""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.zeros((len(SEEDS), len(x)))
    for number, train, test in each_fold(eyes):
        for grade in range(4):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=2000))
            above = model.fit(x[train], eyes.grades[train] > grade).predict_proba(x[test])[:, 1]
            found[number, test] += above
    return found


def cached(name: str, compute: Any) -> np.ndarray:
    """An array from a file, computed the first time."""
    file = Path("features") / f"{name}.npy"
    if not file.is_file():
        print(f"features: {name}", file=sys.stderr, flush=True)
        with atomic_write(file) as partial, partial.open("wb") as opened:
            np.save(opened, compute())
    return np.asarray(np.load(file))


def frozen(size: int) -> Frozen:
    """The last two stages of EfficientNet-Lite0, means over the image."""
    return Frozen(LITE0, PooledLayers(create_encoder(LITE0, "imagenet"), [-2, -1], ["mean"]), size)


def of_tiles(eyes: Eyes) -> np.ndarray:
    """Features (n, T, D) of the tiles of all graded photographs."""
    crops, network = eyes.data.images, frozen(TILE)
    side, found = crops.shape[1] // TILE, []
    for row in eyes.rows:
        crop = np.asarray(crops[row])
        tiles = crop.reshape(side, TILE, side, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
        found.append(features(network, tiles, np.arange(len(tiles))))
    return np.stack(found)


def main() -> None:
    folder = WORK / "idrid"
    checkout(folder, yaml.safe_load(PARAMS.read_text()))
    subprocess.run(
        ["snakemake", "--cores", "2", "--", "grade_best"], cwd=folder, check=True, stdout=sys.stderr
    )
    os.chdir(folder)
    own, eyes = shipped(), Eyes(Path())
    plain: View = own["lite0"]
    tiles = cached("lite0_tiles", lambda: of_tiles(eyes))
    pooled = eyes.features(plain)
    members = {name: out_of_fold(eyes, view) for name, view in own.items()}
    attended = by_attention(eyes, tiles)
    rows = {
        "one regression at 640 px": members["lite0"],
        "ordinal logistic regression": ordinal(eyes, pooled),
        "mean of 16 tiles at 1024 px": by_ridge(eyes, tiles.mean(axis=1)),
        "mean and maximum of 16 tiles": by_ridge(
            eyes, np.concatenate([tiles.mean(axis=1), tiles.max(axis=1)], 1)
        ),
        "attention over 16 tiles": attended,
    }
    found = compare(eyes, "EfficientNet-Lite0, not trained", rows)
    best = np.mean(list(members.values()), axis=0)
    compare(
        eyes,
        "mean of regressions",
        {"best": best, "with attention over 16 tiles": (3 * best + attended) / 4},
    )
    report_gain("tile_attention", found["attention over 16 tiles"], found["one regression at 640 px"])


if __name__ == "__main__":
    main()
