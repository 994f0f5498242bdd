"""ONNX graphs from crops to grades, with the normalisation inside; each is compared with torch."""

import logging
import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.errors import UserError
from drgrade.export.errors import UnsuitableError
from drgrade.files import write_json
from drgrade.grading.base import Grader
from drgrade.grading.regression import GradedNetwork
from drgrade.images.preprocess import Preprocess
from drgrade.images.scaled import scale
from drgrade.images.store import Pixels
from drgrade.predict.model import Model
from drgrade.predict.table import USE
from drgrade.rng import numpy_rng
from drgrade.schema import GRADES

log = logging.getLogger(__name__)

OPSET = 18
INPUT, OUTPUTS = "crops", ("score", "probabilities")
BATCHES = (1, 5)
"""Batch sizes of the comparison with onnxruntime."""
TOLERANCE = 1e-4
"""Largest difference from torch, in grades and in probabilities."""
PREPROCESSING = "preprocessing.json"


class Graph(nn.Module):
    """A trained network from crops to grades.

    Input: crops, uint8 RGB (B, S, S, 3). Output: expected grades, float32 (B,), and probabilities of the
    grades, float32 (B, 5), not calibrated.

    Args:
        network: maps normalised images (B, 3, S, S) to what a :class:`GradedNetwork` gives, to scores (B,) or
            (B, 1), or to logits (B, 5).
        preprocess: its preprocessing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.size = network, preprocess.size
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name)).view(3, 1, 1))

    @classmethod
    def of(cls, grader: Grader) -> Self:
        """Return the graph of a trained grader, on the CPU and in evaluation mode.

        Raises:
            UnsuitableError: it has no network that grades by itself.
        """
        explained, network = grader.explainable(), grader.tensors()
        if explained is None:
            raise UnsuitableError(f"the grader {grader.params.grader} has no network that grades by itself")
        chosen = network if isinstance(network, GradedNetwork) else explained.network
        graph = cls(chosen, explained.preprocess).cpu().eval().requires_grad_(False)
        return graph.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and probabilities."""
        images = (crops.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        outputs = self.network(images)
        if isinstance(self.network, GradedNetwork):
            score = self.network.score(outputs)
            if self.network.shape:
                return score, self.network.probabilities(outputs).float()
        elif outputs.ndim == 2 and outputs.shape[1] == len(GRADES):
            probabilities = outputs.softmax(dim=1)
            return (probabilities * _grades(outputs)).sum(dim=1), probabilities
        else:
            score = outputs.flatten()
        score = score.clamp(GRADES[0], GRADES[-1])  # as in drgrade.grading.base.interpolated
        return score, (1 - (score[:, None] - _grades(score)).abs()).clamp(0, 1)


def _grades(like: Tensor) -> Tensor:
    return torch.tensor(GRADES, dtype=like.dtype)


def write_onnx(model: Model, folder: Path) -> str:
    """Write a graph for each training, ``<training>.onnx``, and ``preprocessing.json``.

    Args:
        model: the trained model.
        folder: to write to.

    Returns:
        A line on what was written, with the largest difference between onnxruntime and torch.

    Raises:
        UnsuitableError: the model is no network, or ONNX lacks one of its operations.
        UserError: onnxruntime and torch give different results.
    """
    graphs = {label: Graph.of(member.grader) for label, member in model.members.items()}
    folder.mkdir(parents=True)
    differences = []
    for label, graph in graphs.items():
        crops = samples(graph.size)
        with torch.inference_mode():
            graph(torch.from_numpy(crops))  # constants that a network caches must not be made while tracing
        _write(graph, crops, folder / f"{label}.onnx")
        differences.append(difference(graph, folder / f"{label}.onnx", crops))
    largest = float(np.max(differences))  # NaN if one is
    if not largest <= TOLERANCE:
        raise UserError(
            f"--onnx: onnxruntime differs from torch by {largest:.2g}, more than {TOLERANCE:g}; "
            "export without ONNX (--timm --mlflow)"
        )
    preprocess = next(iter(model.members.values())).grader.preprocess
    write_json(_preprocessing(preprocess, list(graphs)), folder / PREPROCESSING)
    if preprocess.changes() is not None:
        log.warning(
            "onnx: the graph sees each crop once; in drgrade its outputs are means over %d transforms",
            preprocess.test_time.transforms,
        )
    return f"{', '.join(graphs)}; opset {OPSET}; largest difference from torch {largest:.2g}"


def samples(size: int) -> Pixels:
    """Return images to compare on, uint8 (5, size, size, 3): noise, soft spots and black."""
    rng = numpy_rng(0, "export", size)
    noise = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    spots = scale(rng.integers(0, 256, (2, 6, 6, 3), np.uint8), size)
    return np.concatenate([noise, spots, np.zeros_like(noise[:1])])


def difference(graph: Graph, path: Path, crops: Pixels) -> float:
    """Return the largest difference between a file in onnxruntime and the graph in torch.

    Args:
        graph: the graph.
        path: its ONNX file.
        crops: uint8 RGB (n, S, S, 3); batches of the sizes BATCHES are taken from them.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = []
    for size in BATCHES:
        with torch.inference_mode():
            expected = graph(torch.from_numpy(crops[:size]))
        for ours, theirs in zip(expected, session.run(OUTPUTS, {INPUT: crops[:size]}), strict=True):
            found.append(float(np.abs(ours.numpy() - theirs).max()))
    return float(np.max(found))  # NaN if one is


def _write(graph: Graph, crops: Pixels, path: Path) -> None:
    """Write a graph with a dynamic batch.

    Raises:
        UnsuitableError: ONNX lacks one of its operations.
    """
    for name in ("onnx_ir", "onnxscript"):  # they report each step
        logging.getLogger(name).setLevel(logging.WARNING)
    batch = (torch.from_numpy(crops[:2]),)  # a batch of one would become a constant
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's, of its own code
            # strict: with the other tracer, which runs the code, len(batch) becomes a constant
            traced = torch.export.export(graph, batch, dynamic_shapes=shapes, strict=True)
            program = torch.onnx.export(
                traced, input_names=[INPUT], output_names=list(OUTPUTS), opset_version=OPSET, dynamo=True,
                verbose=False,
            )  # fmt: skip
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnsuitableError(f"the network cannot be written as ONNX ({reason[:200]})") from None
    assert program is not None
    program.save(path, external_data=False)


def _preprocessing(preprocess: Preprocess, labels: list[str]) -> dict[str, Any]:
    """Return what a program needs to know that runs the graphs without drgrade."""
    side = preprocess.size
    return {
        "graphs": [f"{label}.onnx" for label in labels],
        "opset": OPSET,
        "crop": preprocess.crop.model_dump(),
        "interpolation": {"smaller": "area averaging", "larger": "cubic"},
        "input": {"name": INPUT, "type": "uint8", "shape": ["batch", side, side, 3], "channels": "RGB"},
        "normalisation": {
            "inside the graph": True, "mean": list(preprocess.mean), "std": list(preprocess.std),
        },
        "outputs": {
            "score": "float32 (batch,), expected grade 0-4; round it to the grade",
            "probabilities": "float32 (batch, 5), of grades 0-4, not calibrated",
        },
        "several graphs": "take the means of their outputs; then the calibration in ../drgrade.json",
        "test_time_transforms": preprocess.test_time.transforms,
        "use": USE,
    }  # fmt: skip
