"""The network of the grader ``deepmt``: :class:`.MultiTask` with a linear head, see :mod:`.deepmt`."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drgrade.encoders import create_encoder, normalisation
from drgrade.grading.deepmt_losses import KINDS
from drgrade.grading.regression import EncoderWithHead
from drgrade.networks.deepmt.gmsv import gmsv, unit_range
from drgrade.networks.deepmt.multi_task import MultiTask
from drgrade.networks.deepmt.segmentation import Segmentation
from drgrade.networks.deepmt.super_resolution import Bicubic, SuperResolution
from drgrade.schema import GRADES

if TYPE_CHECKING:
    from drgrade.grading.deepmt import Params

UNCHANGED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Mean and standard deviation of the input: images stay in 0-1, the grading network normalises them."""


class DeepMTNetwork(EncoderWithHead):
    """The three networks with a linear head. Input: low-resolution images (B, 3, h, w) in 0-1.

    Args:
        encoder: maps them to features (B, D).
        loss: a name in :data:`drgrade.grading.deepmt_losses.KINDS`.
        dropout: share of the features that is left out in training.
    """

    encoder: MultiTask

    def __init__(self, encoder: MultiTask, loss: str, dropout: float) -> None:
        super().__init__(encoder, KINDS[loss]())
        self.dropout = dropout

    def read(self, features: Tensor) -> Tensor:
        """Outputs (B, *shape), in training with dropout."""
        return self.sure(F.dropout(features, self.dropout, self.training))

    def sure(self, features: Tensor) -> Tensor:
        """Outputs (B, *shape) without dropout."""
        return super().read(features)

    def evidence(self, features: Tensor, maps: list[Tensor], *, create_graph: bool = False) -> Tensor:
        """Evidence for disease in 0-1, (B, H / 4, W / 4), of what ``encoder.read`` gives; without dropout.

        What is explained is the sum of the logits of grades 1-4, or the score where there are none.
        """
        outputs = self.sure(features)
        classes = self.shape == (len(GRADES),)
        target = outputs[:, 1:].sum(dim=1) if classes else self.score(outputs)
        return unit_range(gmsv(maps, target, create_graph=create_graph))

    def evidence_of(self, images: Tensor, lesions: Tensor) -> Tensor:
        """Evidence in high-resolution images, as a constant that nothing is trained by."""
        with torch.enable_grad():
            features, maps = self.encoder.read(images.detach().requires_grad_(), lesions.detach())
            return self.evidence(features, maps).detach()


class Explained(nn.Module):
    """For explainers: a gradient reaches the grading network only, which saves most of the memory.

    Output: logits of the grades (B, 5) where there are any, else scores (B,).
    """

    def __init__(self, network: DeepMTNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for low-resolution images."""
        network, (restored, lesions) = self.network, self.network.encoder.prepared_in_parts(images)
        if torch.is_grad_enabled():
            restored.requires_grad_()  # so that a network with fixed weights can be explained too
        outputs = network.read(network.encoder.read(restored, lesions)[0])
        return outputs if network.shape == (len(GRADES),) else network.score(outputs)


def new_network(params: "Params", start: str) -> DeepMTNetwork:
    """The untrained network; only the grading network's trunk has start weights.

    Args:
        params: params of the experiment.
        start: ``random``, ``imagenet`` or a weights file of the trunk.
    """
    restore: nn.Module = Bicubic(params.scale)
    if params.super_resolution != "none":
        restore = SuperResolution(
            params.scale, params.super_resolution_width, params.super_resolution_blocks,
            params.super_resolution_output, checkpointing=params.checkpointing,
        )  # fmt: skip
    segment = None
    if params.segmentation != "none":
        segment = Segmentation(
            params.segmentation_width, params.side_weights, checkpointing=params.checkpointing
        )
    encoder = MultiTask(
        restore, segment, create_encoder(params.encoder, start), *normalisation(params.encoder),
        grids=params.grids, hidden=params.hidden,
    )  # fmt: skip
    return DeepMTNetwork(encoder, params.grade_loss, params.dropout)
