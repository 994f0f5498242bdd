"""The three phases of training of the grader ``deepmt``, see :mod:`drgrade.grading.deepmt`.

Phases 1 and 3 pair each graded photograph with one that has drawn lesions. The weights after a finished phase
are kept in a file, so that a killed training does not repeat it.
"""

import math
import resource
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from drgrade.device import exact
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading import deepmt_losses as losses
from drgrade.grading.base import Job, Photographs
from drgrade.grading.deepmt_network import DeepMTNetwork
from drgrade.grading.optimise import optimizer, schedule
from drgrade.grading.regression import Best
from drgrade.grading.sampling import class_weights
from drgrade.images.augment import Plan, apply, draw, plan, warp
from drgrade.images.scaled import at_size
from drgrade.inference import outputs as outputs_of
from drgrade.lesions.mask_store import BITS
from drgrade.networks.deepmt.super_resolution import bicubic, psnr, shrink
from drgrade.rank import rank
from drgrade.rng import derive, derive_each, numpy_rng
from drgrade.schema import GRADES
from drgrade.training import CHECKPOINTS, Batches, Loader, Module, fingerprint, fit, pictures, save_tensors

if TYPE_CHECKING:
    from drgrade.grading.deepmt import Params

UNCHANGED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Mean and standard deviation that leave images in 0-1 as they are."""


class Images(NamedTuple):
    """Photographs with their augmentation: uint8 (B, 3, S, S)."""

    pictures: Tensor
    changes: Plan


class Sample(NamedTuple):
    """A training batch.

    Attributes:
        graded: graded photographs.
        grades: int64 (B,).
        weights: weight of each grade in the loss (5,), or None.
        drawn: as many photographs with drawn lesions; None in the phase ``grading``.
        masks: their lesions, a bit for each kind, uint8 (B, S, S).
        annotated: which kinds were looked for, uint8 (B,).
    """

    graded: Images
    grades: Tensor
    weights: Tensor | None
    drawn: Images | None = None
    masks: Tensor | None = None
    annotated: Tensor | None = None


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


def pairs(graded: int, drawn: int, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch, (B, 2): positions of graded photographs, and of ones with drawn lesions.

    Each graded photograph occurs once, as in :class:`.Batches`; the others equally often, give or take one.
    """
    rounds = range(math.ceil(graded / drawn))
    others = np.concatenate([numpy_rng(seed, "drawn", epoch, turn).permutation(drawn) for turn in rounds])
    batches = list(Batches(graded, size, seed, epoch))
    starts = np.cumsum([0, *map(len, batches)])
    return [
        np.stack([batch, others[start : start + len(batch)]], axis=1)
        for start, batch in zip(starts[:-1], batches, strict=True)
    ]


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
    bits: Tensor

    def __init__(self, network: DeepMTNetwork, params: "Params", job: Job) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params, self.settings = params, getattr(params, self.name)
        self.augment = params.augment.model_dump()
        self.seed = derive(job.seed, self.name)
        assert job.masked is not None
        self.graded, self.val, self.drawn = job.train, job.val, job.masked
        self.counts = np.bincount(job.train.grades, minlength=len(GRADES))
        self.register_buffer("bits", torch.tensor(list(BITS.values()), dtype=torch.uint8), persistent=False)
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
        epoch, size = self.current_epoch, self.settings.batch_size
        batches: Any = Batches(len(self.graded), size, self.seed, epoch)
        if self.with_drawn:
            batches = pairs(len(self.graded), len(self.drawn), size, self.seed, epoch)
        return Loader(batches, partial(self.prepare, epoch=epoch))

    def prepare(self, items: np.ndarray, epoch: int) -> Sample:
        """Read a batch and draw its augmentation.

        Args:
            items: positions of graded photographs (B,), or :func:`pairs` (B, 2).
            epoch: counted from 0.
        """
        positions = items if items.ndim == 1 else items[:, 0]
        graded = self._images(self.graded, positions, derive_each(positions, self.seed, "graded", epoch))
        weights = class_weights(self.params.class_weights, self.counts, epoch)
        by_grade = None if weights is None else torch.from_numpy(weights.astype(np.float32))
        sample = Sample(graded, torch.from_numpy(self.graded.grades[positions]), by_grade)
        if items.ndim == 1:
            return sample
        places, masks = items[:, 1], self.drawn.masks
        assert masks is not None
        return sample._replace(
            drawn=self._images(self.drawn, places, derive_each(items, self.seed, "drawn", epoch)),
            masks=torch.from_numpy(masks[places]),
            annotated=torch.from_numpy(masks.annotated[places]),
        )

    def _images(self, photographs: Photographs, positions: np.ndarray, seeds: np.ndarray) -> Images:
        changes = plan(self.augment, draw(self.augment, seeds))
        return Images(pictures(photographs.images, photographs.rows[positions]), changes)

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

    def on_train_start(self) -> None:
        """The peak of memory is that of this phase."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def validate(self) -> dict[str, float]:
        """Mean of each loss in this epoch, unweighted, and the peak of memory so far in GB."""
        means = {f"loss_{name}": float(torch.stack(values).mean()) for name, values in self.values.items()}
        self.values.clear()
        return means | {"peak_memory_gb": peak_memory() / 1e9}

    def configure_optimizers(self) -> Any:
        """Adam and the schedule; both are stepped once every ``accumulate`` batches."""
        params, settings = self.params, self.settings
        tuned = optimizer(self.network, name="adam", lr=settings.lr, weight_decay=params.weight_decay)
        batches = len(Batches(len(self.graded), settings.batch_size, self.seed, 0))
        steps = math.ceil(batches / settings.accumulate)
        timed = schedule(tuned, params.schedule, steps, settings.epochs)
        return [tuned], [{"scheduler": timed, "interval": "step"}]

    def in_high_resolution(self, *several: Images) -> Tensor:
        """Augmented images (B, 3, H, W) in 0-1 of one or more groups of photographs."""
        with exact(self.bits.device):
            size = self.params.high_size
            return torch.cat([apply(one.pictures, one.changes, size).clamp(0, 1) for one in several])

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
        masks, annotated = self.masks(batch)
        return {"segmentation": losses.dice_loss(lesions[len(batch.grades) :], masks, annotated)}

    def segmentation_aware(self, lesions: Tensor, original: Tensor) -> dict[str, Tensor]:
        """L_seg-aware: squared difference of lesions (B, 4, H, W) in enlarged and in original images."""
        if not self.aware_of("segmentation") or not lesions.shape[1]:
            return {}
        return {"segmentation_aware": F.mse_loss(lesions.float(), original.float())}

    def masks(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Drawn lesions (n, 4, H, W), augmented like their photographs, and kinds looked for (n, 4)."""
        assert batch.drawn is not None
        assert batch.masks is not None
        assert batch.annotated is not None
        masks = ((batch.masks[:, None] & self.bits[:, None, None]) > 0).float()
        if batch.drawn.changes.moves is not None:
            with exact(masks.device):
                masks = (warp(masks, batch.drawn.changes.moves, self.params.high_size) >= 0.5).float()
        return masks, ((batch.annotated[:, None] & self.bits) > 0).float()


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
        values = super().validate()
        if not len(self.val):
            return values
        network, low = self.network.eval(), at_size(self.val.images, self.params.input_size)
        found = outputs_of(network, low, self.val.rows, *UNCHANGED, network.shape)
        scores = network.score(torch.from_numpy(found)).double().numpy()
        value = qwk(self.val.grades, to_grades(scores))
        if self.params.select == "best" and value > self.best.merit:
            self.best = Best(value, {key: kept.clone() for key, kept in network.state_dict().items()})
        return values | {"val_qwk": value, "val_mse": float(np.mean((scores - self.val.grades) ** 2))}

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
            masks = self.pseudo_masks(images[:count], batch.grades)
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

    def pseudo_masks(self, images: Tensor, grades: Tensor) -> Tensor:
        """Masks (B, H, W) of high-resolution images: where evidence is above the threshold.

        They are empty for grade 0. The evidence of an image always reaches 1, so a healthy eye would get
        lesions otherwise.
        """
        network = self.teacher or self.network
        evidence = network.evidence_of(images, network.encoder.lesions_in_parts(images))
        evidence = F.interpolate(
            evidence[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        found = losses.above(evidence[:, 0], self.params.threshold, None)
        return found * (grades > 0).to(found.dtype)[:, None, None]

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the teacher once per optimiser step."""
        if self.teacher is None or self.trainer.global_step == self.step:
            return
        self.step = self.trainer.global_step
        theirs, own = self.teacher.state_dict(), self.network.state_dict()
        moving = [key for key, value in theirs.items() if value.is_floating_point()]
        update = get_ema_multi_avg_fn(self.params.pseudo_masks.teacher_decay)
        with torch.no_grad():
            update([theirs[key] for key in moving], [own[key] for key in moving], None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the teacher's step too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the teacher's step too."""
        super().on_load_checkpoint(checkpoint)
        self.step = checkpoint["step"]


PHASES: tuple[type[Phase], ...] = (Restoration, Grading, Joint)
"""In order."""


class Prefixed:
    """Reports the metrics of a phase under names of their own.

    Args:
        run: MLflow run of the training.
        prefix: put before each name.
    """

    def __init__(self, run: Any, prefix: str) -> None:
        self.run, self.prefix = run, prefix

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one epoch of the phase (``step``)."""
        self.run.metrics({self.prefix + name: value for name, value in values.items()}, step)


def train(network: DeepMTNetwork, params: "Params", job: Job) -> None:
    """Train ``network`` in three phases, resuming after the last finished epoch.

    Weights after each finished phase are kept until the last one ends. Metrics of the last phase have
    the names that other graders use; those of the others begin with the name of the phase.

    Args:
        network: trained in place.
        params: params of the experiment.
        job: photographs, seed, key.
    """
    folder = CHECKPOINTS / fingerprint(job.name, job.key, "finished phases")
    for kind in PHASES:
        finished = folder / f"{kind.name}.safetensors"
        if finished.exists():
            network.load_state_dict(load_file(finished))
            continue
        phase = kind(network, params, job)
        if not phase.trained():
            continue
        network.requires_grad_(False)
        for part in phase.trained():
            part.requires_grad_(True)
        fit(
            phase,
            name=f"{job.name} {kind.name}",
            epochs=phase.settings.epochs,
            seed=phase.seed,
            key=(job.key, kind.name),
            run=job.run if kind is Joint else Prefixed(job.run, f"{kind.name}_"),
            accumulate=phase.settings.accumulate,
            clip=params.clip,
        )
        phase.finish()
        if rank() == 0 and kind is not Joint:
            save_tensors(network.state_dict(), finished)
    network.requires_grad_(True).eval()
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)


class Errors(nn.Module):
    """Mean squared errors of a super-resolution network and of bicubic interpolation, (B, 2).

    Input: high-resolution images (B, 3, H, W) in 0-1, computed one by one to limit memory.
    """

    def __init__(self, restore: nn.Module) -> None:
        super().__init__()
        self.restore = restore

    def forward(self, images: Tensor) -> Tensor:
        """Errors of each image."""
        return torch.cat([self._errors(image) for image in images.split(1)])

    def _errors(self, images: Tensor) -> Tensor:
        scale: int = self.restore.scale  # type: ignore[assignment]
        low = shrink(images, scale)
        both = [self.restore(low), bicubic(low, scale)]
        return torch.stack([(one - images).square().mean(dim=(1, 2, 3)) for one in both], dim=1)


def restoration_psnr(restore: nn.Module, photographs: Photographs) -> dict[str, float]:
    """Mean PSNR in dB over photographs of a super-resolution network, and of bicubic interpolation."""
    errors = outputs_of(Errors(restore).eval(), photographs.images, photographs.rows, *UNCHANGED, (2,))
    own, baseline = psnr(torch.from_numpy(errors)).mean(dim=0).tolist()
    return {"val_psnr": own, "val_psnr_bicubic": baseline}


def peak_memory() -> int:
    """Largest memory in bytes that tensors took on the GPU; without one, that the process took."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
