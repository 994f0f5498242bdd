"""Regression activation maps (Wang and Yang, arXiv 1703.10757): the score of a network at each position.

For a network whose score is a linear unit on the spatial mean of a feature map f,

    score = sum_k w_k mean_xy f_k(x, y) + b = mean_xy [sum_k w_k f_k(x, y) + b],

and the bracket is the map. Deviations from the published maps: the bias is added at each position, so that
the map is in grade units and its mean is the score; it lies in the part of the input that the network looks
at; all images have one colour scale.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.device import exact
from drgrade.errors import UserError
from drgrade.explain.base import BATCH, EXPLAINERS, Heat, Values, encoder_of, over_input, to_heat

TOLERANCE = 1e-4
"""Largest difference between the mean of a map and the score; relative for scores above 1."""


@EXPLAINERS.register("ram")
class RegressionActivationMap:
    """The network's linear unit, applied to the feature vector of each position in place of their mean."""

    def heat(self, model: nn.Module, batch: Tensor) -> Heat:
        """Return heat maps (B, H, W) of normalised images (B, 3, H, W) on the common scale: 1 is grade 4.

        Raises:
            UserError: see :meth:`values`.
        """
        return to_heat(over_input(self.values(model, batch), model, batch.shape[-1]))

    @torch.no_grad()
    def values(self, model: nn.Module, batch: Tensor) -> Values:
        """Return maps (B, h, w) in grade units of normalised images (B, 3, H, W).

        The mean of a map is the network's score; if the network clips scores at 0, the score before that.
        Puts the model in evaluation mode.

        Raises:
            UserError: the score is not a linear unit on the mean of a feature map.
        """
        model.eval()
        maps = []
        for part in batch.split(BATCH):
            with exact(part.device):
                found = linear_unit(model, positions(encoder_of(model), part))
                check_mean(found, model(part))
            maps.append(found.float().cpu().numpy())
        return np.concatenate(maps)


def positions(encoder: nn.Module, batch: Tensor) -> Tensor:
    """Return the feature vectors of all positions of a timm encoder's last feature map, (B, h, w, D).

    Tokens of a vision transformer are arranged in their square grid, without class and register tokens.

    Raises:
        UserError: the encoder has no feature map.
    """
    last_map: Callable[[Tensor], Tensor] | None = getattr(encoder, "forward_features", None)
    if last_map is None:
        raise refusal(f"{type(encoder).__name__} has no feature map")
    features = last_map(batch)
    if features.ndim == 4:
        channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
        return features if channels_last else features.permute(0, 2, 3, 1)
    if getattr(encoder, "global_pool", "avg") == "token":  # a clipped score would hide it from check_mean
        raise refusal(f"the score of {type(encoder).__name__} is that of its class token")
    tokens = features[:, getattr(encoder, "num_prefix_tokens", 0) :]
    side = math.isqrt(tokens.shape[1])
    if features.ndim != 3 or side**2 != tokens.shape[1]:
        raise refusal(f"{type(encoder).__name__} returns features of shape {tuple(features.shape)}")
    return tokens.unflatten(1, (side, side))


def linear_unit(model: nn.Module, features: Tensor) -> Tensor:
    """Apply the unit that follows the mean to feature vectors (B, h, w, D); returns (B, h, w).

    The centring and scaling of a linear probe belong to it.

    Raises:
        UserError: the head is not one linear unit on D features.
    """
    network: Any = getattr(model, "network", model)
    head = getattr(network, "head", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise refusal("its head is not one linear unit")
    if head.in_features != features.shape[-1]:
        raise refusal(f"its head takes {head.in_features} features, its feature map has {features.shape[-1]}")
    scaled = network.scaled(features) if hasattr(network, "scaled") else features
    found: Tensor = head(scaled).squeeze(-1)
    return found


def check_mean(maps: Tensor, scores: Tensor) -> None:
    """Check that the means of maps (B, h, w) are the network's scores (B,) or (B, 1), perhaps clipped at 0.

    Raises:
        UserError: they are not; there is something else than the mean between feature map and score.
    """
    if scores.numel() != len(maps):
        raise refusal("it returns several numbers for an image")
    score = scores.double().reshape(-1)
    mean = maps.double().mean(dim=(1, 2))
    apart = torch.minimum((mean - score).abs(), (mean.clamp(min=0) - score).abs())
    if not (apart <= TOLERANCE * score.abs().clamp(min=1)).all():
        raise refusal(f"the mean of its map differs from its score by {apart.max().item():.2g}")


def refusal(reason: str) -> UserError:
    """Return the error for a network that has no such map."""
    return UserError(
        "explanations.<name>.method: ram needs a network whose score is one linear unit on the mean of a "
        f"feature map, but {reason}; use cam, or explain another experiment"
    )
