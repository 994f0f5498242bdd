"""Weighted k-nearest-neighbour classification of features.

After Wu et al. (CVPR 2018), a standard evaluation of self-supervised encoders: the nearest neighbours by
cosine similarity vote for their grades, each with weight exp(cosine / temperature).
"""

import numpy as np
import torch
from torch import nn

from drgrade.schema import GRADES

CHUNK = 256
"""Photographs compared at a time with all training photographs; limits memory."""


class Bank(nn.Module):
    """Features, normalised to unit length, and grades of the training photographs.

    Args:
        features: features from a frozen encoder, (n, D).
        grades: 0-4, int64 (n,).
    """

    features: torch.Tensor
    grades: torch.Tensor

    def __init__(self, features: torch.Tensor, grades: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("features", nn.functional.normalize(features, dim=1))
        self.register_buffer("grades", grades)

    @torch.inference_mode()
    def nearest(self, queries: np.ndarray, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the k nearest training photographs, or all where there are fewer.

        Args:
            queries: features (m, D).
            k: number of neighbours.

        Returns:
            Cosines in descending order, float64 (m, k), and grades, int64 (m, k), on the CPU.
        """
        k = min(k, len(self.grades))
        cosines = torch.empty(len(queries), k, dtype=torch.float64)
        grades = torch.empty(len(queries), k, dtype=torch.int64)
        for start in range(0, len(queries), CHUNK):
            part = slice(start, start + CHUNK)
            chunk = nn.functional.normalize(torch.from_numpy(queries[part]).to(self.features.device), dim=1)
            found, places = (chunk @ self.features.T).topk(k, dim=1)
            cosines[part], grades[part] = found.double().cpu(), self.grades[places].cpu()
        return cosines, grades


def votes(cosines: torch.Tensor, grades: torch.Tensor, temperature: float) -> np.ndarray:
    """Share of each grade in the neighbours' votes, weighted by exp(cosine / temperature).

    Args:
        cosines: cosine similarities of each photograph's neighbours, float64 (m, k).
        grades: the neighbours' grades, int64 (m, k).
        temperature: above 0.

    Returns:
        float64 (m, 5), rows sum to 1.
    """
    weights = (cosines / temperature).softmax(dim=1)  # normalised; no overflow at low temperatures
    shares = torch.zeros(len(cosines), len(GRADES), dtype=torch.float64)
    return shares.scatter_add_(1, grades, weights).numpy()
