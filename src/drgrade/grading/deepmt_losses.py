"""Losses of DeepMT-DR (Wang et al., AAAI 2021): image, lesions, grade, and what the tasks ask of each other.

Norms are means over pixels, so that weights do not depend on the size of the images; only the total variation
is a sum, as its published weight of 1e-6 supposes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from drgrade.evaluate.metrics import N_GRADES
from drgrade.grading.losses import CRITERIA, Classification, Criterion

EMPTY = 1.0
"""Added to numerator and denominator of Dice, in pixels: without it images without lesions teach nothing."""


def image_loss(restored: Tensor, images: Tensor) -> Tensor:
    """L_img: mean absolute error of enlarged images."""
    return F.l1_loss(restored.float(), images.float())


def total_variation(images: Tensor) -> Tensor:
    """L_tv: sum of squared differences of neighbouring pixels (B, C, H, W), mean over the images."""
    across, down = images.float().diff(dim=3), images.float().diff(dim=2)
    return (across.square().sum() + down.square().sum()) / len(images)


def dice_loss(probabilities: Tensor, masks: Tensor, annotated: Tensor) -> Tensor:
    """L_seg with masks: 1 - Dice of each kind of lesion in each image, averaged; 0 if all is right.

    The published code evaluates it for each pixel, where its minimum is at a probability of 0.73.

    Args:
        probabilities: (B, K, H, W).
        masks: 0 or 1, (B, K, H, W).
        annotated: 1 where a kind was looked for in an image, otherwise 0: (B, K).
    """
    probabilities, masks = probabilities.float(), masks.float()
    both = (probabilities * masks).sum(dim=(2, 3))
    each = probabilities.sum(dim=(2, 3)) + masks.sum(dim=(2, 3))
    losses = 1 - (2 * both + EMPTY) / (each + EMPTY)
    return (losses * annotated).sum() / annotated.sum().clamp(min=1)


def pseudo_mask_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """L_seg without masks: mean squared difference of any lesion's probability and a pseudo mask.

    A pseudo mask does not tell kinds of lesions apart, so it is compared with 1 - prod_k (1 - p_k).

    Args:
        probabilities: of each kind (B, K, H, W).
        masks: 0 or 1, (B, H, W).
    """
    return F.mse_loss(1 - (1 - probabilities.float()).prod(dim=1), masks.float())


def above(evidence: Tensor, threshold: float, softness: float | None) -> Tensor:
    """Whether evidence in 0-1 is above a threshold.

    Args:
        evidence: any shape.
        threshold: published: 0.5.
        softness: width of a sigmoid, which has a gradient; None: 0 or 1, as published, without gradient.
    """
    if softness is None:
        return (evidence > threshold).to(evidence.dtype)
    return torch.sigmoid((evidence - threshold) / softness)


def only_through(images: Tensor, loss: Tensor) -> Tensor:
    """The same loss, which trains nothing but what computed the images.

    Args:
        images: images that the loss depends on.
        loss: a scalar; a constant stays one.
    """
    if not loss.requires_grad:
        return loss
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    linear = (images * gradient).sum()
    return loss.detach() + linear - linear.detach()


class Distance(Classification):
    """L_cls: cross-entropy, weighted by the distance of the predicted grade from the true one.

    With true grade l and predicted grade k (the largest logit), the weight is
    (|k - l| + margin) / sum_i (|i - l| + 1); the denominators are 15, 12, 11, 12, 15 for l = 0-4.

    Attributes:
        margin: 0 as published: a photograph that is graded correctly, however unsurely, teaches nothing. 1
            also teaches confidence.
    """

    margin: float = 1.0

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean of the weighted -log p of the true grade, also weighted by class."""
        numbers = torch.arange(N_GRADES, device=outputs.device)
        distances = (numbers - grades[:, None]).abs()  # (B, 5)
        wrong_by = distances.gather(1, outputs.argmax(dim=1, keepdim=True)).squeeze(1)
        each = F.cross_entropy(outputs, grades, reduction="none")
        each = each * (wrong_by + self.margin) / (distances + 1).sum(dim=1)
        if weights is None:
            return each.mean()
        return (each * weights[grades]).sum() / weights[grades].sum()


class PublishedDistance(Distance):
    """L_cls as published."""

    margin = 0.0


KINDS: dict[str, type[Criterion]] = {
    "distance": Distance,
    "published_distance": PublishedDistance,
    **{str(name): kind for name, kind in CRITERIA.items()},
}
"""Losses of the grade by name."""
