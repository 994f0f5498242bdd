"""The three phases of training of the grader ``deepmt``: what each trains, its losses, its validation.

They run one after another in :mod:`drgrade.grading.deepmt_training`.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading import deepmt_losses as losses
from drgrade.grading.base import Job
from drgrade.grading.deepmt_batches import BatchReader, Images, Sample, augmented, augmented_masks
from drgrade.grading.deepmt_network import UNCHANGED, DeepMTNetwork
from drgrade.grading.deepmt_pseudo_masks import follow, pseudo_masks
from drgrade.grading.deepmt_psnr import restoration_psnr
from drgrade.grading.optimise import optimizer, schedule
from drgrade.grading.regression import Best
from drgrade.images.scaled import at_size
from drgrade.inference import outputs as outputs_of
from drgrade.networks.deepmt.super_resolution import shrink
from drgrade.rng import derive
from drgrade.training import Loader, Module

if TYPE_CHECKING:
    from drgrade.grading.deepmt import Params


class Terms(NamedTuple):
    """Losses of a batch, by the names that the weights have too.

    Attributes:
        own: train all networks that they depend on.
        aware: train super-resolution only. Trained by them, the other networks would learn to see the same in
            all images, which is nothing.
        restored: enlarged images (B, 3, H, W), through which ``aware`` reaches super-resolution.
    """

    own: dict[str, Tensor]
    aware: dict[str, Tensor]
    restored: Tensor


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of losses, each times the weight of its name."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


class Phase(Module):
    """One phase of the training: batches, augmentation at high resolution, losses by name.

    Args:
        network: trained in place; only :meth:`trained` changes.
        params: params of the experiment.
        job: photographs, seed.
    """

    name: ClassVar[str]
    """Key of the phase in the params."""
    with_drawn: ClassVar[bool] = True
    """Whether photographs with drawn lesions take part."""

    def __init__(self, network: DeepMTNetwork, params: "Params", job: Job) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params, self.settings = params, getattr(params, self.name)
        self.seed = derive(job.seed, self.name)
        self.reader, self.val = BatchReader(params, job, self.seed), job.val
        self.values: dict[str, list[Tensor]] = {}

    @abstractmethod
    def trained(self) -> list[nn.Module]:
        """The parts that this phase changes; where there are none, it is left out."""

    @abstractmethod
    def terms(self, batch: Sample) -> Terms:
        """Losses of a batch."""

    def weights(self) -> dict[str, float]:
        """Weights of the losses in this epoch."""
        return self.params.loss_weights.model_dump()

    def finish(self) -> None:
        """Called when the phase has ended."""

    def train_dataloader(self) -> Loader:
        """Batches of this epoch."""
        return self.reader.loader(self.settings.batch_size, self.current_epoch, paired=self.with_drawn)

    def training_step(self, batch: Sample, _: int) -> Tensor:
        """Weighted sum of the losses of a batch."""
        self.set_modes()
        terms, weights = self.terms(batch), self.weights()
        for name, term in (terms.own | terms.aware).items():
            self.values.setdefault(name, []).append(term.detach())
        loss = weighted(terms.own, weights)
        if terms.aware:
            loss = loss + losses.only_through(terms.restored, weighted(terms.aware, weights))
        self.losses.append(loss.detach())
        return loss

    def set_modes(self) -> None:
        """Training mode for what is trained, evaluation mode for the rest."""
        self.network.eval()
        for part in self.trained():
            part.train()
        self.network.training = True  # dropout before the head

    def validate(self) -> dict[str, float]:
        """Mean of each loss in this epoch, unweighted."""
        means = {f"loss_{name}": float(torch.stack(values).mean()) for name, values in self.values.items()}
        self.values.clear()
        return means

    def configure_optimizers(self) -> Any:
        """Adam and the schedule; both are stepped once every ``accumulate`` batches."""
        params, settings = self.params, self.settings
        tuned = optimizer(self.network, name="adam", lr=settings.lr, weight_decay=params.weight_decay)
        steps = math.ceil(self.reader.count(settings.batch_size) / settings.accumulate)
        timed = schedule(tuned, params.schedule, steps, settings.epochs)
        return [tuned], [{"scheduler": timed, "interval": "step"}]

    def in_high_resolution(self, *several: Images) -> Tensor:
        """Augmented images (B, 3, H, W) in 0-1 of one or more groups of photographs."""
        return augmented(*several, size=self.params.high_size)

    @property
    def trains_restoration(self) -> bool:
        """Whether this phase trains super-resolution."""
        return any(part is self.network.encoder.restore for part in self.trained())

    def aware_of(self, task: str) -> bool:
        """Whether this phase trains super-resolution for ``segmentation`` or ``grading``."""
        return self.trains_restoration and self.params.task_aware in (task, "both")

    def image_terms(self, images: Tensor, restored: Tensor) -> dict[str, Tensor]:
        """Losses of enlarged images against high-resolution images (B, 3, H, W)."""
        if not self.trains_restoration:
            return {}
        return {"image": losses.image_loss(restored, images), "variation": losses.total_variation(restored)}

    def segmentation_terms(self, batch: Sample, lesions: Tensor) -> dict[str, Tensor]:
        """Loss of drawn lesions.

        Args:
            batch: graded and drawn photographs, n each.
            lesions: probabilities in both, enlarged (2 n, 4, H, W).
        """
        if not any(part is self.network.encoder.segment for part in self.trained()):
            return {}
        masks, annotated = augmented_masks(batch, self.params.high_size)
        return {"segmentation": losses.dice_loss(lesions[len(batch.grades) :], masks, annotated)}

    def segmentation_aware(self, lesions: Tensor, original: Tensor) -> dict[str, Tensor]:
        """L_seg-aware: squared difference of lesions (B, 4, H, W) in enlarged and in original images."""
        if not self.aware_of("segmentation") or not lesions.shape[1]:
            return {}
        return {"segmentation_aware": F.mse_loss(lesions.float(), original.float())}


class Restoration(Phase):
    """Phase 1: super-resolution and segmentation."""

    name = "restoration"

    def trained(self) -> list[nn.Module]:
        """Both networks, as far as there are any."""
        encoder, params = self.network.encoder, self.params
        parts = [(params.super_resolution, encoder.restore), (params.segmentation, encoder.segment)]
        return [part for task, part in parts if task != "none" and part is not None]

    def terms(self, batch: Sample) -> Terms:
        """Losses of images and lesions."""
        assert batch.drawn is not None
        encoder = self.network.encoder
        images = self.in_high_resolution(batch.graded, batch.drawn)
        restored, lesions = encoder.prepared(shrink(images, self.params.scale))
        own = self.image_terms(images, restored) | self.segmentation_terms(batch, lesions)
        aware = {}
        if self.aware_of("segmentation"):
            aware = self.segmentation_aware(lesions, encoder.lesions_in_parts(images))
        return Terms(own, aware, restored)

    def validate(self) -> dict[str, float]:
        """Losses, and PSNR of enlarged validation photographs beside that of bicubic interpolation, in dB."""
        values = super().validate()
        if len(self.val) and self.trains_restoration:
            values |= restoration_psnr(self.network.encoder.restore, self.val)
        return values


class Graded(Phase):
    """A phase that trains grading; validates every epoch and keeps the best one if ``select`` says so."""

    def __init__(self, network: DeepMTNetwork, params: "Params", job: Job) -> None:
        super().__init__(network, params, job)
        self.best = Best()

    def trained(self) -> list[nn.Module]:
        """The grading network."""
        return [self.network.encoder.encoder, self.network.encoder.hidden, self.network.head]

    def grade_term(self, batch: Sample, features: Tensor) -> Tensor:
        """Loss of the grade, with dropout."""
        return self.network.loss(self.network.read(features).float(), batch.grades, batch.weights)

    def validate(self) -> dict[str, float]:
        """Losses, validation QWK and MSE."""
        return super().validate() | self.graded()

    def graded(self) -> dict[str, float]:
        """Validation QWK and MSE, if there are such photographs; keeps the best weights."""
        if not len(self.val):
            return {}
        network, low = self.network.eval(), at_size(self.val.images, self.params.input_size)
        found = outputs_of(network, low, self.val.rows, *UNCHANGED, network.shape)
        scores = network.score(torch.from_numpy(found)).double().numpy()
        value = qwk(self.val.grades, to_grades(scores))
        if self.params.select == "best" and value > self.best.merit:
            self.best = Best(value, {key: kept.clone() for key, kept in network.state_dict().items()})
        return {"val_qwk": value, "val_mse": float(np.mean((scores - self.val.grades) ** 2))}

    def finish(self) -> None:
        """Take the weights of the best epoch."""
        if self.best.weights:
            self.network.load_state_dict(self.best.weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best epoch so far, for resuming."""
        checkpoint["best"] = tuple(self.best)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the best epoch so far."""
        self.best = Best(*checkpoint["best"])


class Grading(Graded):
    """Phase 2: grading alone."""

    name, with_drawn = "grading", False

    def terms(self, batch: Sample) -> Terms:
        """Loss of the grade."""
        encoder, images = self.network.encoder, self.in_high_resolution(batch.graded)
        if self.params.grade_from == "enlarged":
            inputs = encoder.prepared_in_parts(shrink(images, self.params.scale))
        else:
            inputs = images, encoder.lesions_in_parts(images)
        return Terms({"grade": self.grade_term(batch, encoder.read(*inputs)[0])}, {}, inputs[0])


class Joint(Graded):
    """Phase 3: all networks that are ``joint``, and grading."""

    name = "joint"

    def __init__(self, network: DeepMTNetwork, params: "Params", job: Job) -> None:
        super().__init__(network, params, job)
        self.makes_masks = params.pseudo_masks.use and params.segmentation == "joint"
        self.teacher: DeepMTNetwork | None = None
        if self.makes_masks and params.pseudo_masks.teacher_decay:
            self.teacher = deepcopy(network).requires_grad_(False)
        self.step = 0

    def trained(self) -> list[nn.Module]:
        """The grading network, and the others that are ``joint``."""
        encoder, params = self.network.encoder, self.params
        parts = [(params.super_resolution, encoder.restore), (params.segmentation, encoder.segment)]
        return [*(part for task, part in parts if task == "joint" and part is not None), *super().trained()]

    def on_train_start(self) -> None:
        """The weights of phase 2 are the best so far: training all networks may make them worse."""
        if self.current_epoch == 0 and self.params.select == "best":
            self.graded()

    def set_modes(self) -> None:
        """As in the other phases; BatchNorm in evaluation mode if ``joint_norms`` says so."""
        super().set_modes()
        if self.params.joint_norms == "running":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if self.teacher is not None:
            self.teacher.eval()

    def weights(self) -> dict[str, float]:
        """Those of this phase: ``pseudo`` rises over the first epochs."""
        weights = super().weights()
        ramp = min(1.0, (self.current_epoch + 1) / (self.params.pseudo_masks.ramp_epochs + 1))
        return weights | {
            "segmentation_aware": weights["joint_segmentation_aware"],
            "pseudo": weights["pseudo"] * ramp,
        }

    def terms(self, batch: Sample) -> Terms:
        """All losses."""
        assert batch.drawn is not None
        encoder, count = self.network.encoder, len(batch.grades)
        images = self.in_high_resolution(batch.graded, batch.drawn)
        restored, lesions = encoder.prepared(shrink(images, self.params.scale))
        features, maps = encoder.read(restored[:count], lesions[:count])
        own = self.image_terms(images, restored) | self.segmentation_terms(batch, lesions)
        own["grade"] = self.grade_term(batch, features)
        if self.makes_masks:
            teacher = self.teacher or self.network
            masks = pseudo_masks(teacher, images[:count], batch.grades, self.params.threshold)
            own["pseudo"] = losses.pseudo_mask_loss(lesions[:count], masks)
        aware = {}
        if self.aware_of("segmentation") or self.aware_of("grading"):
            original = encoder.lesions_in_parts(images)
            aware = self.segmentation_aware(lesions, original)
            aware |= self.grading_aware(features, maps, images[:count], original[:count])
        return Terms(own, aware, restored)

    def grading_aware(
        self, features: Tensor, maps: list[Tensor], images: Tensor, original: Tensor
    ) -> dict[str, Tensor]:
        """L_cls-aware: squared difference of the evidence in enlarged and in high-resolution images.

        Args:
            features: of enlarged images.
            maps: of enlarged images.
            images: the high-resolution images.
            original: lesions in these.
        """
        if not self.aware_of("grading"):
            return {}
        threshold = partial(losses.above, threshold=self.params.threshold, softness=self.params.softness)
        seen = threshold(self.network.evidence(features, maps, create_graph=True))
        wanted = threshold(self.network.evidence_of(images, original))
        return {"grading_aware": F.mse_loss(seen, wanted)}

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the teacher once per optimiser step."""
        if self.teacher is None or self.trainer.global_step == self.step:
            return
        self.step = self.trainer.global_step
        follow(self.teacher, self.network, self.params.pseudo_masks.teacher_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the teacher's step too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the teacher's step too."""
        super().on_load_checkpoint(checkpoint)
        self.step = checkpoint["step"]
