"""The segmentation network: a timm encoder with a decoder of segmentation-models-pytorch."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import drgrade.networks  # noqa: F401  registers networks that timm lacks
from drgrade.checkpoints import read_tensors
from drgrade.device import exact
from drgrade.encoders import create_encoder, normalisation
from drgrade.errors import UserError
from drgrade.files import write_json
from drgrade.images.augment import in_unit_range, normalise
from drgrade.params import Segmentation
from drgrade.schema import LESIONS
from drgrade.training import save_tensors

TENSORS, ABOUT = "model.safetensors", "segmentation.json"
LIBRARIES = ("segmentation-models-pytorch", "timm", "torch")


class SegmentationNetwork(nn.Module):
    """Marks the lesions of each kind in a photograph scaled by ``params.scale``.

    Weights are random; :func:`new_network` loads those that the encoder starts from.

    Args:
        params: architecture, encoder and kinds.

    Attributes:
        params: as given.
        kinds: the K kinds of lesions, in the order of the output's channels.
        mean: channel means (RGB, 0-1) that the input is normalised by.
        std: channel standard deviations.

    Raises:
        UserError: there is no such encoder, or it does not suit the architecture.
    """

    def __init__(self, params: Segmentation) -> None:
        super().__init__()
        self.params = params
        self.kinds = [kind for kind in LESIONS if kind in params.kinds]
        self.mean, self.std = normalisation(params.encoder)
        try:
            self.network = smp.create_model(
                params.architecture,
                f"tu-{params.encoder}",
                encoder_weights=None,
                classes=len(self.kinds),
            )
        except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
            raise UserError(
                f"segmentation.encoder: {params.encoder} cannot be used with {params.architecture} "
                f"({' '.join(str(error).split())}); take another, such as tf_efficientnet_lite0"
            ) from None

    def forward(self, batch: Tensor) -> Tensor:
        """Logits of the kinds.

        Args:
            batch: RGB (B, 3, T, T), uint8 or float in 0-1; T is a multiple of 32.

        Returns:
            (B, K, T, T).
        """
        with exact(batch.device):
            inputs = normalise(in_unit_range(batch), self.mean, self.std)
        logits: Tensor = self.network(inputs.contiguous(memory_format=torch.channels_last))
        return logits

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``segmentation.json`` (params, kinds, versions of libraries)."""
        save_tensors(self.network.state_dict(), folder / TENSORS)
        about: dict[str, Any] = {
            "params": self.params.model_dump(),
            "kinds": self.kinds,
            "mean": self.mean,
            "std": self.std,
            "output": "logits of each kind of lesion",
            "use": "research only, not a diagnosis",
            "versions": {name: metadata.version(name) for name in LIBRARIES},
        }
        write_json(about, folder / ABOUT)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """The network in a folder, in evaluation mode.

        Args:
            folder: written by :meth:`save`.
            device: where to put it.

        Raises:
            UserError: a file is missing or damaged, or the tensors do not fit the description.
        """
        path = folder / ABOUT
        try:
            about = json.loads(path.read_text())
            network = cls(Segmentation.model_validate(about["params"]))
            network.mean, network.std = about["mean"], about["std"]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run the stage segmentation first") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not the description of a network ({reason}); train it again") from None
        try:
            network.network.load_state_dict(read_tensors(folder / TENSORS))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder / TENSORS}: not the tensors of {path} ({reason})") from None
        return network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def new_network(params: Segmentation) -> SegmentationNetwork:
    """An untrained network whose encoder has the weights of ``params.start``.

    Raises:
        UserError: there are no such weights, or they belong to another encoder.
    """
    network = SegmentationNetwork(params)
    if params.start != "random":
        trunk: Any = network.network.encoder.model
        weights = create_encoder(params.encoder, params.start).state_dict()
        load_trunk(trunk, params.encoder, weights)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_trunk(trunk: nn.Module, name: str, weights: dict[str, Tensor]) -> None:
    """Load the weights of a whole timm backbone into its trunk, which was created with ``features_only``.

    The trunk lacks the backbone's last layers, and timm renames its modules: it flattens containers
    (``stages.0`` becomes ``stages_0``) or wraps the backbone (``model.``).

    Raises:
        UserError: a tensor of the trunk has no counterpart.
    """
    renamed = {}
    for key, value in weights.items():
        for own in (key, re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key), f"model.{key}"):
            renamed[own] = value
    wanted = trunk.state_dict()
    missing = [key for key in wanted if key not in renamed]
    if missing:
        raise UserError(
            f"segmentation.start: {missing[0]} of {name} has no counterpart in its weights; set it to random"
        )
    trunk.load_state_dict({key: renamed[key] for key in wanted})
