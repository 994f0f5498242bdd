"""The network of the grader ``clpi`` and its training: grades and patches in one step.

    loss = (1 - s) loss of the grades + s negative learning + w cross-entropy of the patches

The released code has the first (``ce``) and the second (``nl``); the publication says that lesions and grades
are learned together. Weights of the terms, batches and patches are not published.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from drgrade.device import exact
from drgrade.distributed import mean_over_processes
from drgrade.errors import UserError
from drgrade.grading.base import Job
from drgrade.grading.clpi_patches import LabelledPatches, Patches, patch_loss
from drgrade.grading.regression import EncoderWithHead, FineTune, Graded
from drgrade.images.augment import apply, normalise
from drgrade.images.preprocess import Preprocess
from drgrade.networks.clpi import CELL, CLASSES, Encoder
from drgrade.params.training import Loss
from drgrade.schema import GRADES

if TYPE_CHECKING:
    from drgrade.grading.clpi import Params

SMALLEST = 1e-7
"""Least value of 1 - p in the loss of negative learning."""


class ClpiNetwork(EncoderWithHead):
    """CLPI's encoder and a linear layer; output: logits of the grades (B, 5), or as the loss needs.

    Args:
        encoder: maps images to pooled features.
        loss: name of the loss of the grades.
        negative_share: share s of negative learning in the loss, 0-1.
    """

    encoder: Encoder

    def __init__(
        self, encoder: Encoder, loss: Loss = "cross_entropy", *, negative_share: float = 0.0
    ) -> None:
        super().__init__(encoder, loss)
        self.negative_share = negative_share

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Training loss of the grades.

        Negative learning needs a grade that a photograph does not have. The mean over all four is the
        expectation of drawing one of them.
        """
        loss = super().loss(outputs, grades, weights)
        if not self.negative_share:
            return loss
        others = [(grades + step) % len(GRADES) for step in GRADES[1:]]
        negative = torch.stack([negative_loss(outputs.softmax(dim=1), other) for other in others]).mean()
        return (1 - self.negative_share) * loss + self.negative_share * negative


def negative_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Loss of negative learning: -log(1 - p) of a label that is wrong, with 1 - p clipped at 1e-7.

    It is 0 where the wrong label has the probability 0, and 16.118 where it has 1. Source: the loss ``nl`` of
    the released code, which takes the label it is given.

    Args:
        probabilities: float32 (B, K).
        labels: for each row a class that it does not belong to, int64 (B,).

    Returns:
        (B,).
    """
    found = probabilities.gather(1, labels[:, None]).squeeze(1)
    return -(1 - found).clamp(SMALLEST, 1).log()


class WithLesions(nn.Module):
    """Wraps a network to return its outputs, and the largest probability of each lesion class over all cells.

    Shape: (B, K + 3).
    """

    def __init__(self, network: ClpiNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> Tensor:
        """Outputs, then probabilities 0-1."""
        encoder = self.network.encoder
        features, maps = encoder.forward_with_maps(batch)
        outputs = self.network.read(encoder.forward_head(features))
        return torch.cat([outputs.reshape(len(batch), -1).float(), maps[:, 1:].amax((2, 3))], dim=1)


class ActivationMaps(nn.Module):
    """Wraps a network to return the class activation maps of the most probable grade.

    The map is the feature map times the grade's weights, summed over channels, without the bias and without a
    ReLU; unbounded. Source: the released code; Zhou et al., CVPR 2016.

    Args:
        network: its head gives the logits of the five grades.

    Raises:
        UserError: the head gives something else.
    """

    def __init__(self, network: ClpiNetwork) -> None:
        super().__init__()
        if not isinstance(network.head, nn.Linear) or network.head.out_features != len(GRADES):
            raise UserError("clpi cam: needs logits of the five grades; train with loss: cross_entropy")
        self.encoder, self.head = network.encoder, network.head

    def forward(self, batch: Tensor) -> Tensor:
        """Maps (B, S / 64, S / 64), float32, of images (B, 3, S, S)."""
        features = self.encoder.forward_features(batch)
        with exact(batch.device):
            features = features.float()
            best = self.head(features.mean((2, 3))).argmax(dim=1)
            return torch.einsum("bkhw,bk->bhw", features, self.head.weight[best])


class Both(NamedTuple):
    """A training batch: photographs with grades, and patches with lesion classes."""

    graded: Graded
    patches: Patches


class Joint(FineTune):
    """Training module: each step sees a batch of graded photographs and, for each of them, some patches.

    Args:
        network: trained in place.
        params: the experiment's params, see :class:`drgrade.grading.clpi.Params`.
        preprocess: conversion of crops to the network's inputs.
        training: photographs with grades and photographs with masks, seed.
    """

    network: ClpiNetwork

    def __init__(self, network: ClpiNetwork, params: "Params", preprocess: Preprocess, training: Job) -> None:
        super().__init__(network, params, preprocess, training)
        if training.masked is None:
            raise ValueError("clpi needs photographs with masks")
        self.patch_weight = params.patch_weight
        self.patches = LabelledPatches(
            training.masked,
            size=params.input_size,
            lesions=params.lesions,
            min_area=params.min_area,
            count=params.patches,
            seed=training.seed,
            augment=self.augment,
            axes=self.axes,
        )
        self.terms: dict[str, list[Tensor]] = {"grade_loss": [], "patch_loss": []}

    def prepare(  # type: ignore[override]
        self,
        positions: np.ndarray,
        epoch: int,
        drawn: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Both:
        """Read the photographs and patches of a batch and draw their augmentation."""
        return Both(super().prepare(positions, epoch, drawn, weights), self.patches.batch(positions, epoch))

    def training_step(self, batch: Both, index: int) -> Tensor:  # type: ignore[override]
        """Training loss of a batch."""
        grades = super().training_step(batch.graded, index)
        patches = self.loss_of_patches(batch.patches)
        loss = grades + self.patch_weight * patches
        self.losses[-1] = loss.detach()
        for name, term in (("grade_loss", grades), ("patch_loss", patches)):
            self.terms[name].append(term.detach())
        return loss

    def loss_of_patches(self, patches: Patches) -> Tensor:
        """Loss of the lesion network for patches.

        They do not move its running statistics, as predictions are of whole photographs, where lesions are
        rarer.
        """
        with exact(patches.images.device):
            inputs = normalise(apply(patches.images, patches.changes, CELL), self.mean, self.std)
        lesions = self.network.encoder.lesions
        statistics = {name: buffer.clone() for name, buffer in lesions.named_buffers()}
        logits: Tensor = functional_call(lesions, statistics, (inputs,))
        return patch_loss(logits.float().reshape(-1, CLASSES), patches.classes, patches.known)

    def validate(self) -> dict[str, float]:
        """Mean loss of grades and of patches in the finished epoch, besides validation QWK and MSE."""
        values = {
            name: float(mean_over_processes(torch.stack(terms).mean())) for name, terms in self.terms.items()
        }
        for terms in self.terms.values():
            terms.clear()
        return values | super().validate()
