"""An encoder as timm's ``local-dir:`` and the Hugging Face hub store it: ``config.json`` and its weights."""

import copy
import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from drgrade.export.errors import UnsuitableError
from drgrade.export.onnx import samples
from drgrade.grading.base import Grader
from drgrade.images.preprocess import Preprocess
from drgrade.params import Encoded
from drgrade.predict.model import Model
from drgrade.training import pictures


def write_timm(model: Model, folder: Path) -> str:
    """Write the encoder of the model's first training, to load with ``timm.create_model("local-dir:...")``.

    Args:
        model: the trained model.
        folder: to write to.

    Returns:
        A line on what was written.

    Raises:
        UnsuitableError: there is no encoder, timm does not know it, or timm's copy gives other features.
    """
    import timm
    from timm.models import save_for_hf

    logging.getLogger("timm").setLevel(logging.WARNING)  # it reports each file that it reads
    label, member = next(iter(model.members.items()))
    encoder, preprocess = encoder_of(member.grader), member.grader.preprocess
    smaller = preprocess.size < preprocess.crop.size
    save_for_hf(
        encoder,
        str(folder),
        model_args=_pooling(encoder),
        # the terms of photographs and start weights hold; provenance.json of the export names them
        model_config={"pretrained_cfg": {"license": "other"}},
        data_config={
            "input_size": (3, preprocess.size, preprocess.size),
            "mean": preprocess.mean,
            "std": preprocess.std,
            "interpolation": "box" if smaller else "bicubic",
            "crop_pct": 1.0,
        },
        safe_serialization=True,
    )
    try:
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        equal = torch.equal(_features(encoder, preprocess), _features(theirs, preprocess))
    except RuntimeError:  # of DeepMT-DR, whose encoder has more than three input channels
        equal = False
    if not equal:
        raise UnsuitableError(
            f"timm does not rebuild the encoder of the grader {member.grader.params.grader}"
        )
    return f"{member.grader.params.encoder} of {label}, {encoder.num_features} features"


def encoder_of(grader: Grader) -> nn.Module:
    """Return a contiguous copy of a grader's encoder, on the CPU and in evaluation mode.

    Raises:
        UnsuitableError: it has none, or one that timm does not know.
    """
    from timm.models import model_entrypoint

    name, network = grader.params.grader, grader.tensors()
    if not isinstance(grader.params, Encoded) or network is None:
        raise UnsuitableError(f"the grader {name} has no encoder")
    built = [module for module in network.modules() if hasattr(module, "pretrained_cfg")]
    if not built or not model_entrypoint(grader.params.encoder).__module__.startswith("timm."):
        raise UnsuitableError(f"timm does not know the encoder {grader.params.encoder} of the grader {name}")
    encoder = copy.deepcopy(built[0]).cpu().eval().requires_grad_(False)
    return encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def _pooling(encoder: nn.Module) -> dict[str, str]:
    """Pooling of a vision transformer, which loading may have changed (:func:`.checkpoints.pool_like`)."""
    pooling = getattr(encoder, "global_pool", None)
    return {"global_pool": pooling} if isinstance(pooling, str) else {}


def _features(encoder: nn.Module, preprocess: Preprocess) -> torch.Tensor:
    """Features of sample images (n, D)."""
    images = samples(preprocess.size)
    with torch.inference_mode():
        features: torch.Tensor = encoder(preprocess.normalised(pictures(images, np.arange(len(images)))))
    return features
