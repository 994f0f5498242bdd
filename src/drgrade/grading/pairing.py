"""Inputs that join the features of both eyes of a patient, as in the blend of o_O (Kaggle DR 2015, 2nd).

The input of a photograph is [own features, features of the fellow eye, 1 for right eyes and 0 for left ones],
with features standardised before they are paired and the flag as it is. Deviations: an unknown eye has the
flag 0.5, and where the fellow eye is missing the photograph's own features stand in for it, the most likely
state of that eye, as grades of both eyes mostly agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from drgrade.errors import UserError
from drgrade.grading.base import Photographs
from drgrade.grading.feature_sets import FeatureSet


def right_eye(table: pd.DataFrame) -> np.ndarray:
    """1 for right eyes, 0 for left ones, 0.5 where ``eye`` is missing: float32 (n,)."""
    return table["eye"].map({"right": 1.0, "left": 0.0}).fillna(0.5).to_numpy(np.float32)


def fellow(partner: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Position of each photograph's fellow eye; its own position where there is none.

    Args:
        partner: position of the fellow eye, -1 where there is none, int64 (n,); see
            :meth:`~drgrade.grading.base.Photographs.partner`.
        usable: whether a photograph can be a fellow eye, bool (n,).

    Returns:
        int64 (n,).
    """
    found = (partner >= 0) & usable[partner]  # -1 reads the last photograph, which the first term excludes
    return np.where(found, partner, np.arange(len(partner)))


class EyeRows(NamedTuple):
    """The photographs of a table that have features of one network.

    Attributes:
        places: positions in the table, int64 (m,), ascending.
        features: float32 (m, F), not standardised.
        fellow: position of the fellow eye among these rows, its own where there is none, int64 (m,).
        right: :func:`right_eye`, float32 (m,).
    """

    places: np.ndarray
    features: np.ndarray
    fellow: np.ndarray
    right: np.ndarray


def eye_rows(photographs: Photographs, sets: Sequence[FeatureSet], model: int, *, std: bool) -> EyeRows:
    """Features of network ``model`` for photographs, those of several sets side by side.

    Args:
        photographs: n photographs, of which some may have no features of this network.
        sets: feature sets; of each the means, then the standard deviations.
        model: the network.
        std: whether to take the standard deviations too.

    Raises:
        UserError: a photograph has features in some of the sets only.
    """
    names = photographs.table["image_id"].tolist()
    rows = np.stack([one.photographs(photographs.dataset or None, names, model) for one in sets])  # (sets, n)
    count = (rows >= 0).sum(axis=0)
    here = count == len(sets)
    partly = np.flatnonzero((count > 0) & ~here)
    if partly.size:
        without = sets[int(np.argmin(rows[:, partly[0]]))].name
        raise UserError(
            f"features: the photograph {names[partly[0]]} has features of model {model} in some sets but not "
            f"in {without}; use sets of the same photographs and parts, or run the stage features again"
        )
    places = np.flatnonzero(here)
    features = [one.values(of_set[places], std=std) for one, of_set in zip(sets, rows, strict=True)]
    among = np.cumsum(here) - 1  # position in the table to position among these rows
    other = among[fellow(photographs.partner(), here)[places]]
    right = right_eye(photographs.table)[places]
    return EyeRows(places, np.concatenate(features, axis=1), other, right)


@dataclass(frozen=True)
class Pairs:
    """Standardised features, and how to pair them; inputs are built batch by batch to save memory.

    Attributes:
        features: float32 (n, F).
        fellow: position of the fellow eye, int64 (n,); None: inputs are a photograph's own features alone.
        right: :func:`right_eye`, float32 (n,).
    """

    features: Tensor
    fellow: Tensor | None
    right: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of(cls, rows: EyeRows, scaler: "Standardise", *, per_patient: bool) -> Self:
        """Standardise features, on the device of ``scaler``."""
        device = scaler.mean.device
        other = torch.from_numpy(rows.fellow).to(device) if per_patient else None
        features = scaler(torch.from_numpy(rows.features).to(device))
        return cls(features, other, torch.from_numpy(rows.right).to(device))

    def inputs(self, items: Tensor) -> Tensor:
        """Inputs (B, :func:`width`) of the photographs at positions ``items``, int64 (B,)."""
        own = self.features[items]
        if self.fellow is None:
            return own
        return torch.cat([own, self.features[self.fellow[items]], self.right[items, None]], dim=1)


def width(features: int, *, per_patient: bool) -> int:
    """Number of inputs for F features a photograph: 2 F + 1, or F without the fellow eye."""
    return 2 * features + 1 if per_patient else features


class Standardise(nn.Module):
    """Centres features and divides them by their standard deviations.

    Input and output: (B, F).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def adapt(self, found: np.ndarray) -> None:
        """Compute both from features (n, F), each photograph once; constant features are only centred."""
        from sklearn.preprocessing import StandardScaler

        fitted = StandardScaler().fit(found)
        self.mean.copy_(torch.from_numpy(fitted.mean_))
        self.scale.copy_(torch.from_numpy(fitted.scale_))

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features (B, F)."""
        return (features - self.mean) / self.scale
