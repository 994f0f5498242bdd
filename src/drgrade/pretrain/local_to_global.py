"""Local-to-global self-distillation: DINO (Caron et al., ICCV 2021) on fundus photographs (arXiv 2410.00779).

The student gets small and large crops of a photograph, the teacher only the large ones; the student learns
to predict from any crop the teacher's output for another. The teacher is the student's exponential moving
average, and its encoder is the result. Head and loss are lightly's, hyperparameters those of DINO and of the
paper's code. Deviations (docs/deviations.md): schedules reach their last value at the last step, where the
published ones stop one step short; a teacher that has collapsed stops the run.
"""

import logging
import math
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from drgrade.device import exact
from drgrade.encoders import create_encoder, normalisation, width
from drgrade.errors import UserError
from drgrade.params import LocalToGlobal
from drgrade.pretrain.base import METHODS, Material, Method
from drgrade.pretrain.collapse import TeacherMonitor, stop_if_collapsed
from drgrade.pretrain.crops import MultiCrop, Plan
from drgrade.pretrain.monitor import PHOTOGRAPHS, save_crops
from drgrade.pretrain.watch import Watch, unwatched
from drgrade.seeding import seed_everything
from drgrade.training import Batches, Loader, Module, compile_network, fit, pictures

log = logging.getLogger(__name__)

LAST_LR = 1e-6
"""Learning rate of the last step, independent of the batch size."""


class Network(nn.Module):
    """A vision transformer and DINO's head: D-2048-2048-256 (GELU), L2 normalisation, K prototypes.

    Args:
        encoder: timm model without classifier that takes crops of any size.
        params: ``out_dim`` is K.
    """

    def __init__(self, encoder: nn.Module, params: LocalToGlobal) -> None:
        super().__init__()
        from lightly.models.modules import DINOProjectionHead

        self.encoder = encoder
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
            self.head = DINOProjectionHead(
                width(encoder),
                output_dim=params.out_dim,
                freeze_last_layer=params.freeze_last,
                norm_last_layer=False,  # the prototypes' lengths are learnt (section 3.2)
            )

    def features(self, crops: list[Tensor]) -> Tensor:
        """Class tokens of V views, first view first: (V * B, D). Views of equal size form one batch."""
        same: dict[int, list[Tensor]] = {}
        for crop in crops:
            same.setdefault(crop.shape[-1], []).append(crop)
        return torch.cat([self.encoder(torch.cat(batch)) for batch in same.values()])

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Outputs of the head for V views, first view first: (V * B, K)."""
        return self.head(self.features(crops))


def vision_transformer(params: LocalToGlobal, start: str, drop_path: float) -> nn.Module:
    """A timm vision transformer for crops of any multiple of its patch; interpolates position embeddings.

    Raises:
        UserError: no vision transformer, a crop size that is no multiple of its patch, or missing weights.
    """
    key = "pretrain.local_to_global"
    try:
        encoder = create_encoder(params.encoder, start, dynamic_img_size=True, drop_path_rate=drop_path)
    except TypeError:
        raise UserError(
            f"{key}.encoder: {params.encoder} is no vision transformer that takes crops of several sizes; "
            f"use one of timm's, such as vit_small_patch16_224"
        ) from None
    patch = int(encoder.patch_embed.patch_size[0])  # type: ignore[union-attr,index]
    for name in ("global_size", "local_size"):
        if getattr(params, name) % patch:
            raise UserError(
                f"{key}.{name}: {getattr(params, name)} is no multiple of the encoder's patch of {patch} px"
            )
    return encoder


def cosine(first: float, last: float, steps: int) -> np.ndarray:
    """Cosine schedule from ``first`` to ``last``, both reached exactly: (steps,)."""
    progress = np.arange(steps) / max(steps - 1, 1)
    values = last + (first - last) * (1 + np.cos(np.pi * progress)) / 2
    values[-1:] = last if steps > 1 else first
    return values


def learning_rates(params: LocalToGlobal, steps: int) -> np.ndarray:
    """Learning rate of each step: linear warm-up from 0 to lr * batch / 256, then cosine decay to 1e-6.

    Args:
        params: ``lr``, ``batch_size``, ``accumulate``, ``warmup_epochs``, ``epochs``.
        steps: optimiser steps in an epoch.

    Raises:
        UserError: the warm-up takes the whole run.
    """
    total, rising = params.epochs * steps, round(params.warmup_epochs * steps)
    if rising >= total:
        raise UserError(
            f"pretrain.local_to_global.warmup_epochs: {params.warmup_epochs:g} of {params.epochs} epochs; "
            f"the learning rate must come down again, so warm up for fewer"
        )
    peak = params.lr * params.batch_size * params.accumulate / 256
    return np.concatenate([np.linspace(0, peak, rising), cosine(peak, LAST_LR, total - rising)])


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay; biases and all others with one axis have none."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1]},
        {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
    ]


class Batch(NamedTuple):
    """Photographs, uint8 (B, 3, S, S), and the augmentation of each of their views."""

    photographs: Tensor
    views: tuple[Plan, ...]


class SelfDistillation(Module):
    """Student, teacher, centre and schedules; crops come from the store, in batches on the device.

    The state dict holds all that a resumed run needs besides the optimiser and the step: student, teacher
    and centre.
    """

    def __init__(self, student: Network, teacher: Network, material: Material, params: LocalToGlobal) -> None:
        super().__init__()
        from lightly.loss import DINOLoss

        self.student, self.teacher = student, teacher
        self.teacher.load_state_dict(student.state_dict())
        self.teacher.requires_grad_(False)
        self.criterion = DINOLoss(
            params.out_dim, teacher_temp=params.teacher_temperature, student_temp=0.1, center_momentum=0.9
        )
        self.crops = MultiCrop(params, *normalisation(params.encoder))
        self.material, self.params = material, params
        self.centres: list[Tensor] = []
        steps = math.ceil(len(self._batches(0)) / params.accumulate)
        self.rates = learning_rates(params, steps)
        first, last = params.weight_decay
        self.decays = cosine(first, last, params.epochs * steps)
        self.momenta = cosine(params.teacher_momentum, 1.0, params.epochs * steps)
        self.watch = Watch(material.graded, params.encoder, params.global_size, params.knn_every)
        self.monitor: TeacherMonitor | None = None
        self.collapse_stats: dict[str, float] = {}

    def _batches(self, epoch: int) -> Batches:
        return Batches(len(self.material.rows), self.params.batch_size, self.params.seed, epoch, True)

    def on_train_start(self) -> None:
        """Save an image of the first crops as an artifact of the run."""
        if self.current_epoch or not self.trainer.is_global_zero:
            return
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.crops.mean, self.crops.std))
        batch = self.prepare(self._batches(0)[0][:PHOTOGRAPHS], 0)
        crops = self._views(move_data_to_device(batch, self.device))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "crops.png"
            save_crops([views.cpu() * std + mean for views in crops], path)
            self.run.artifact(path)

    def train_dataloader(self) -> Loader:
        """Batches of photographs of this epoch."""
        epoch = self.current_epoch
        return Loader(self._batches(epoch), partial(self.prepare, epoch=epoch))

    def prepare(self, items: np.ndarray, epoch: int) -> Batch:
        """Read photographs and draw their augmentation; ``items`` are indices into the material."""
        rows, images = self.material.rows[items], self.material.images
        boxes = [self.material.boxes[item] for item in items]
        return Batch(
            pictures(images, rows),
            self.crops.plan(images.shape[1], boxes, rows, self.params.seed, epoch),
        )

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Cross-entropy between teacher and student over all pairs of different views, 2 V - 2 of them."""
        crops, count = self._views(batch), len(batch.photographs)
        with torch.no_grad():
            features = self.teacher.features(crops[:2])  # the global views only
            teacher_out = self.teacher.head(features)
        student_out = self.student(crops)
        with exact(self.device):  # sums of 65536 terms are too long for bfloat16
            teacher_out, student_out = teacher_out.float(), student_out.float()
            self._watch(teacher_out, features.float())
            loss = self._loss(list(teacher_out.split(count)), list(student_out.split(count)))
        self.losses.append(loss.detach())
        return loss

    def _views(self, batch: Batch) -> list[Tensor]:
        """Crops of photographs, normalised, in full precision."""
        with exact(batch.photographs.device):
            return self.crops(batch.photographs, batch.views)

    def _loss(self, teacher_out: list[Tensor], student_out: list[Tensor]) -> Tensor:
        """DINO loss of views (B, K); the centre is kept, so that all batches of a step use the same one."""
        centre = self.criterion.center.clone()
        loss: Tensor = self.criterion(teacher_out, student_out)
        self.centres.append(self.criterion.center.clone())
        self.criterion.center.copy_(centre)
        return loss

    def _watch(self, teacher_out: Tensor, features: Tensor) -> None:
        if self.monitor is None:
            self.monitor = TeacherMonitor(teacher_out.shape[1], features.shape[1], teacher_out.device)
        centred = (teacher_out - self.criterion.center[0]) / self.params.teacher_temperature
        self.monitor.update(centred.softmax(dim=-1), features)

    def configure_optimizers(self) -> Any:
        """AdamW; learning rate and weight decay are set at each step."""
        return torch.optim.AdamW(parameter_groups(self.student), lr=self.params.lr)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip each parameter's gradient by its own norm; the prototypes are frozen in the first epochs."""
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                nn.utils.clip_grad_norm_(parameter, self.params.clip)
        self.student.head.cancel_last_layer_gradients(self.current_epoch)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Step the student with the scheduled rates, then update the teacher's average and the centre."""
        from lightly.models.utils import update_momentum

        step = self.trainer.global_step
        for group, decay in zip(optimizer.param_groups, (self.decays[step], 0.0), strict=True):
            group["lr"], group["weight_decay"] = float(self.rates[step]), float(decay)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        update_momentum(self.student, self.teacher, float(self.momenta[step]))
        # the update is linear: the mean of the centres after each batch is the centre after all together
        self.criterion.center.copy_(torch.stack(self.centres).mean(dim=0))
        self.centres.clear()

    def validate(self) -> dict[str, float]:
        """Collapse statistics of the teacher, and its k-NN validation."""
        if self.monitor is not None:
            self.collapse_stats, self.monitor = self.monitor.summary(), None
        return self.collapse_stats | self.watch.values(self.teacher.encoder, self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Validate, report, and stop a run that has collapsed."""
        super().on_train_epoch_end()
        stop_if_collapsed(self.collapse_stats, self.current_epoch)


@METHODS.register("local_to_global")
class LocalToGlobalDistillation(Method):
    """The method; its params are :class:`drgrade.params.LocalToGlobal`."""

    needs_boxes = False

    def check(self, patch: int) -> None:
        """Check that the encoder accepts both crop sizes and that the warm-up is shorter than the run."""
        params = LocalToGlobal(**self.settings)
        with torch.device("meta"):
            vision_transformer(params, "random", 0.0)
        learning_rates(params, steps=1)

    def fit(self, material: Material, *, name: str, key: str, run: Any) -> nn.Module:
        """Train and return the teacher's encoder; student and heads are dropped."""
        params = LocalToGlobal(**self.settings)
        if params.preset == "lesion" and not any(len(boxes) for boxes in material.boxes):
            log.warning("%s: no photograph has a lesion, so preset lesion is the same as fundus", name)
        seed_everything(params.seed, "head")
        student = Network(vision_transformer(params, params.start, params.drop_path), params)
        teacher = Network(vision_transformer(params, "random", 0.0), params)
        module = SelfDistillation(student, teacher, material, params)
        for network in (student, teacher) if params.compile else ():
            compile_network(network.encoder, dynamic=False)  # crops are of two sizes
        fit(
            module,
            name=name,
            epochs=params.epochs,
            seed=params.seed,
            key=(key, unwatched(self.settings)),
            run=run,
            accumulate=params.accumulate,
        )
        return module.teacher.encoder
