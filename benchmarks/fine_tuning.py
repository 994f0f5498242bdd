"""Fine-tuning the last stages of a network at 448 px on real eyes: losses, schedule, averages.

    DRGRADE_IDRID_ROOT=/path/to/IDRiD uv run python benchmarks/fine_tuning.py

Photographs and folds are those of real_eyes.py (one division in place of three), in whose folder it works.
Training a whole EfficientNet-Lite0 at 448 px takes hours of 2 cores a fold and loss. So the first stages keep
ImageNet's weights, and their maps of each photograph and its three mirror images are computed once; the last
stage with the head, or the last two stages, are trained on them, with a mirror image drawn at random in each
step. The grade is the mean score of the four. Ridge regression on frozen features of the same four is what it
is compared with. The losses, twice the epochs, two more seeds and the last two stages are compared; epochs
and learning rates were fixed before the first run, and nothing is selected. The moving average of the weights
has a decay of 0.98 a step. Trainings that are done wait in the folder ``tuned``. The last line is one JSON
object: the QWK of the last stage trained on the squared error, beside that of the regression.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from checkout import checkout
from real_eyes import FOLDS, LITE0, PARAMS, WORK, Eyes, Scores, View, by_ridge, compare, report_gain
from tile_attention import cached
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from drgrade.encoders import create_encoder, normalisation
from drgrade.files import atomic_write
from drgrade.grading.losses import criterion
from drgrade.images.scaled import at_size
from drgrade.inference import outputs
from drgrade.params.training import Loss

SIZE, EPOCHS, BATCH, LR, DECAY, SEEDS = 448, 12, 16, 1e-3, 0.98, (0, 1, 2)
MIRRORED: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))
"""Axes of an image (n, H, W, 3) that are reversed."""
LOSSES: dict[Loss, str] = {
    "mse": "squared error",
    "cross_entropy": "cross-entropy of five classes",
    "coral": "ordinal: CORAL",
    "corn": "ordinal: CORN",
}
RIDGE = "ridge regression on frozen features"


class Recipe(NamedTuple):
    """A training.

    Attributes:
        loss: its name.
        first: first block of EfficientNet-Lite0 that is trained; 6 is the last stage, 5 the one before.
        epochs: passes over the training photographs.
        seed: of the head, the order and the mirror images.
    """

    loss: Loss = "mse"
    first: int = 6
    epochs: int = EPOCHS
    seed: int = 0


RECIPES = {
    **{f"last stage, {what}": Recipe(loss) for loss, what in LOSSES.items()},
    "last stage, squared error, twice the epochs": Recipe(epochs=2 * EPOCHS),
    "last two stages, squared error": Recipe(first=5),
}
TUNED = next(iter(RECIPES))


class LastStages(nn.Module):
    """The end of EfficientNet-Lite0 with the head of a loss.

    Args:
        first: number of its first block.
        loss: name of the loss.
    """

    def __init__(self, first: int, loss: Loss) -> None:
        super().__init__()
        whole = create_encoder(LITE0, "imagenet")
        self.stages = nn.Sequential(*whole.blocks[first:], whole.conv_head, whole.bn2, whole.global_pool)
        self.loss = criterion(loss)
        self.head = self.loss.new_head(whole.num_features)

    def forward(self, maps: Tensor) -> Tensor:
        """Outputs of the head (B, *shape) for maps (B, C, H, W)."""
        found: Tensor = self.head(self.stages(maps))
        return found.reshape(len(found), *self.loss.shape)


def maps_of(eyes: Eyes) -> dict[int, np.ndarray]:
    """Maps (n, 4, C, H, W) of photographs and mirror images that enter the blocks 5 and 6; float16."""
    whole = create_encoder(LITE0, "imagenet").eval()
    front = nn.Sequential(whole.conv_stem, whole.bn1, *whole.blocks[:5])
    before = cached(f"lite0_{SIZE}_before_5", lambda: by_front(eyes, front))
    return {5: before, 6: cached(f"lite0_{SIZE}_before_6", lambda: by_stage(before, whole.blocks[5]))}


def by_front(eyes: Eyes, front: nn.Module) -> np.ndarray:
    """The same from the photographs, by the first stages."""
    mean, std = normalisation(LITE0)
    images = at_size(eyes.data.images, SIZE)
    images = np.stack([np.asarray(images[row]) for row in eyes.rows])
    with torch.inference_mode():
        shape = tuple(front(torch.zeros(1, 3, SIZE, SIZE)).shape[1:])
    found = [
        outputs(front, np.flip(images, axes), np.arange(len(images)), mean, std, shape).astype(np.float16)
        for axes in MIRRORED
    ]
    return np.stack(found, axis=1)


@torch.inference_mode()
def by_stage(before: np.ndarray, stage: nn.Module) -> np.ndarray:
    """The same from the maps that enter the stage before, by that stage."""
    found = [stage(part.flatten(0, 1).float()).half() for part in torch.from_numpy(before).split(BATCH)]
    return torch.cat(found).unflatten(0, (-1, len(MIRRORED))).numpy()


def trained(maps: Tensor, grades: Tensor, recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """The trained network, and the moving average of its weights.

    Args:
        maps: of the training photographs (n, 4, C, H, W).
        grades: their grades, int64 (n,).
        recipe: what is trained, and how.
    """
    torch.manual_seed(recipe.seed)
    network = LastStages(recipe.first, recipe.loss).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    steps = recipe.epochs * (len(maps) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(maps))[: len(maps) // BATCH * BATCH]
        for rows in order.split(BATCH):
            seen = maps[rows, torch.randint(len(MIRRORED), (BATCH,))]
            found = network(seen.float().contiguous(memory_format=torch.channels_last))
            value = network.loss.loss(found, grades[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
    return network.eval(), average.module.eval()


@torch.inference_mode()
def scores_of(network: nn.Module, maps: Tensor) -> np.ndarray:
    """Mean scores (n,) over the mirror images."""
    found = []
    for part in maps.split(BATCH):
        seen = part.flatten(0, 1).float().contiguous(memory_format=torch.channels_last)
        found.append(network.loss.score(network(seen)).reshape(len(part), -1).mean(dim=1))
    scores: np.ndarray = torch.cat(found).clamp(0, 4).numpy()
    return scores


def tuned(eyes: Eyes, maps: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Scores (2, n) of left-out photographs: by the network, and by the average of its weights."""
    file = Path("tuned") / f"{'_'.join(map(str, recipe))}.npy"
    if not file.is_file():
        began, found = time.perf_counter(), np.empty((2, len(maps)))
        inputs, grades = torch.from_numpy(maps), torch.from_numpy(eyes.grades)
        for part in range(FOLDS):
            train, test = (torch.from_numpy((eyes.folds[0] == part) == one) for one in (False, True))
            networks = trained(inputs[train], grades[train], recipe)
            found[:, test.numpy()] = [scores_of(one, inputs[test]) for one in networks]
        print(f"{file}: {(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr, flush=True)
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as partial, partial.open("wb") as opened:
            np.save(opened, found)
    return np.asarray(np.load(file))


def rows_of(eyes: Eyes) -> dict[str, Scores]:
    """Scores (1, n) of left-out photographs, by row of the table."""
    view, maps = View(LITE0, SIZE), maps_of(eyes)
    rows = {
        RIDGE: by_ridge(eyes, eyes.features(view._replace(flips=True)))[:1],
        f"{RIDGE}, without mirror images": by_ridge(eyes, eyes.features(view))[:1],
    }
    seeds = [tuned(eyes, maps[6], Recipe(seed=seed))[0] for seed in SEEDS]
    for name, recipe in RECIPES.items():
        plain, averaged = tuned(eyes, maps[recipe.first], recipe)
        rows[name] = plain[None]
        rows[f"{name}, average of the weights"] = averaged[None]
    rows[f"{TUNED}, mean of {len(SEEDS)} seeds"] = np.mean(seeds, axis=0)[None]
    rows[f"mean of ridge regression and {TUNED}"] = (rows[RIDGE] + rows[TUNED]) / 2
    return rows


def main() -> None:
    folder = WORK / "idrid"
    checkout(folder, yaml.safe_load(PARAMS.read_text()))
    subprocess.run(
        ["snakemake", "--cores", "2", "--", "results/idrid/crop/crops.parquet"],
        cwd=folder, check=True, stdout=sys.stderr,
    )  # fmt: skip
    os.chdir(folder)
    torch.set_num_threads(os.cpu_count() or 1)
    eyes = Eyes(Path())
    found = compare(eyes, f"EfficientNet-Lite0 at {SIZE} px", rows_of(eyes))
    report_gain("fine_tuning", found[TUNED], found[RIDGE])


if __name__ == "__main__":
    main()
