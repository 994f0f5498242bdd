"""Grad-CAM (Selvaraju et al., ICCV 2017) of the expected grade, by the package ``grad-cam``."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.errors import UserError
from drgrade.explain.base import BATCH, EXPLAINERS, Heat, expected_grade, over_input


class ActivationMap:
    """A method of the package ``grad-cam``, on the last feature map and the expected grade.

    Attributes:
        name: name of the method in the params.
        of_package: name of the package's class.
    """

    name: ClassVar[str]
    of_package: ClassVar[str]

    def heat(self, model: nn.Module, batch: Tensor) -> Heat:
        """Return heat maps (B, H, W) of normalised images (B, 3, H, W), each scaled to 0-1; all 0 if no
        region contributes to a higher grade. Puts the model in evaluation mode.

        Raises:
            UserError: the network does not end in a feature map (such as transformers).

        """
        import pytorch_grad_cam

        layer = last_feature_map(model, batch[:1], self.name)
        heats = []
        method = getattr(pytorch_grad_cam, self.of_package)
        with method(model=model, target_layers=[layer]) as cam, torch.enable_grad():
            for part in batch.split(BATCH):
                pictures = part.detach().requires_grad_()  # so that frozen networks have gradients too
                heats.append(cam(input_tensor=pictures, targets=[expected_grade] * len(part)))
        return over_input(np.concatenate(heats).astype(np.float32), model, batch.shape[-1])


@EXPLAINERS.register("cam")
class GradCam(ActivationMap):
    """Grad-CAM: channels of the last feature map, weighted by their mean gradient of the expected grade."""

    name, of_package = "cam", "GradCAM"


@torch.no_grad()
def last_feature_map(model: nn.Module, batch: Tensor, method: str = "cam") -> nn.Module:
    """Return the last module, by time of completion, that returns a feature map (B, C, h, w) above 1x1.

    Containers are included: a stage runs once per forward pass, whereas an activation module inside it may
    be shared and run several times.

    Raises:
        UserError: there is no such module, or a later one returns tokens (B, N, C).

    """
    seen: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim >= 3 and output[0, 0].numel() > 1:
            seen.append((module, output.ndim == 4))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        model.eval()(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not seen or not seen[-1][1]:
        raise UserError(
            f"explanations.<name>.method: {method} needs a convolutional network; "
            f"{type(model).__name__} does not end in a feature map; use attention for a transformer"
        )
    return seen[-1][0]
