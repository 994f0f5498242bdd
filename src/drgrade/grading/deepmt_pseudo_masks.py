"""Semi-supervised segmentation of the grader ``deepmt``: its evidence maps are masks of graded photographs.

The maps come from a moving average of the network, the teacher (Tarvainen and Valpola, NeurIPS 2017).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from drgrade.grading.deepmt_losses import above
from drgrade.grading.deepmt_network import DeepMTNetwork


def pseudo_masks(network: DeepMTNetwork, images: Tensor, grades: Tensor, threshold: float) -> Tensor:
    """Masks of lesions of any kind: where evidence is above the threshold.

    They are empty for grade 0. The evidence of an image always reaches 1, so a healthy eye would get lesions
    otherwise.

    Args:
        network: gives the evidence.
        images: high-resolution images (B, 3, H, W) in 0-1.
        grades: int64 (B,).
        threshold: 0-1.

    Returns:
        0 or 1, (B, H, W).
    """
    evidence = network.evidence_of(images, network.encoder.lesions_in_parts(images))
    evidence = F.interpolate(evidence[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)
    found = above(evidence[:, 0], threshold, None)
    return found * (grades > 0).to(found.dtype)[:, None, None]


@torch.no_grad()
def follow(teacher: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the teacher's weights and BatchNorm statistics towards the network's.

    Args:
        teacher: changed in place.
        network: of the same architecture.
        decay: weight of the teacher's own values, 0-1.
    """
    theirs, own = teacher.state_dict(), network.state_dict()
    moving = [key for key, value in theirs.items() if value.is_floating_point()]
    get_ema_multi_avg_fn(decay)([theirs[key] for key in moving], [own[key] for key in moving], None)
