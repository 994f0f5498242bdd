"""GMSV (Wang et al., AAAI 2021): evidence maps merged from four stages of a network; see :mod:`.deepmt.gmsv`.

Deviations from algorithm 1: four stages, not all layers, as in the authors' code, but merged as in the paper,
not by learned convolutions.
"""

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, Heat, encoder_of, outputs_of, over_input
from drgrade.networks.deepmt.gmsv import STAGES, gmsv, unit_range


@EXPLAINERS.register("gmsv")
class Gmsv:
    """Feature maps of the last four stages, weighted by gradients of the evidence for disease."""

    def heat(self, model: nn.Module, batch: Tensor) -> Heat:
        """Return heat maps (B, H, W) of normalised images (B, 3, H, W), each stretched to 0-1; all 0 if no
        region speaks for disease. Puts the model in evaluation mode.

        Raises:
            UserError: the network's encoder has no stages with feature maps (such as transformers).
        """
        model.eval()
        stages = stages_of(model)
        found = []
        for image in batch.split(1):  # a network that works in parts would call its stages several times
            with torch.enable_grad(), outputs_of(stages) as maps:
                outputs = model(image.detach().requires_grad_())  # so that frozen networks have gradients too
                if any(one.ndim != 4 for one in maps):
                    raise refusal(f"{type(encoder_of(model)).__name__} has none")
                evidence = unit_range(gmsv(maps, disease(outputs)))
            found.append(evidence.detach().cpu().numpy())
        return over_input(np.concatenate(found), model, batch.shape[-1])


def disease(outputs: Tensor) -> Tensor:
    """Return what is explained (B,): the sum of the logits of grades 1-4, or the score (B,) or (B, 1)."""
    return outputs[:, 1:].sum(dim=1) if outputs.ndim == 2 and outputs.shape[1] > 1 else outputs.reshape(-1)


def stages_of(model: nn.Module) -> list[nn.Module]:
    """Return the last four stages of a grader's timm encoder.

    Raises:
        UserError: timm does not know its stages.
    """
    encoder = encoder_of(model)
    known = [stage["module"] for stage in getattr(encoder, "feature_info", [])][-STAGES:]
    if not known or getattr(encoder, "output_fmt", "NCHW") != "NCHW":
        raise refusal(f"{type(encoder).__name__} has none")
    return [encoder.get_submodule(name) for name in known]


def refusal(reason: str) -> UserError:
    """Return the error for a network that has no such map."""
    return UserError(
        f"explanations.<name>.method: gmsv needs a network with stages of feature maps (B, C, h, w), but "
        f"{reason}; use cam, or explain another experiment"
    )
