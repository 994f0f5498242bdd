"""A training step asks nothing of its device: all it needs is moved there before, and nothing comes back.

The steps run on PyTorch's ``meta`` device, whose tensors hold no numbers: any wait for a value (``.item()``,
``float``, ``.cpu()``, ``.numpy()``, a mask's size) is an error there, as is what was left on the host.
"""

from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.encoders import create_encoder
from drgrade.grading import finetune, regression
from drgrade.grading.base import Job, Photographs, Start
from drgrade.params import Crop, LesionContrastive, LocalToGlobal, SimCLR
from drgrade.pretrain import contrastive, lesion_contrastive, local_to_global, simclr
from drgrade.pretrain.base import Material
from drgrade.training import Module

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype(np.uint8)
ENCODER = {"encoder": "test_efficientnet", "start": "random"}
MATERIAL = Material(
    IMAGES, np.arange(8), [np.array([[8.0, 8, 20, 20], [30, 30, 40, 44]])] * 8, 32, [np.array([0, 3])] * 8
)


def fine_tune() -> tuple[Module, Any]:
    params = finetune.Params(**ENCODER, input_size=32, augment={"contrast": 0.3, "rotation": 90})
    part = Photographs(IMAGES, pd.DataFrame({"grade": np.arange(8) % 5, "row": np.arange(8)}))
    job = Job(part, part, Start("random"), 3, "", "", None)
    grader = finetune.Finetune(params, Crop())
    network = regression.EncoderWithHead(create_encoder("test_efficientnet", "random"))
    module = regression.FineTune(network, params, grader.preprocess, job)
    return module, module.prepare(np.arange(4), 0)


def lesion_pairs(positives: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Module, Any]:
    params = LesionContrastive(**ENCODER, positives=positives).model_dump()
    module = lesion_contrastive.LesionPairs(contrastive.projector(params), MATERIAL, params)
    if on_gpu:  # windows travel and are changed there
        monkeypatch.setattr("drgrade.pretrain.views.device", lambda: torch.device("cuda"))
    return module, module.prepare(module.samples(0)[:4], 0)


def photograph_pairs() -> tuple[Module, Any]:
    params = SimCLR(**ENCODER, input_size=32).model_dump()
    module = simclr.PhotographPairs(contrastive.projector(params), MATERIAL, params)
    return module, module.prepare(module.samples(0)[:4], 0)


def distillation(preset: str) -> tuple[Module, Any]:
    params = LocalToGlobal(
        encoder="test_vit", out_dim=32, global_size=32, local_size=16, local_crops=2, batch_size=4, epochs=2,
        warmup_epochs=0.5, preset=preset,
    )  # fmt: skip
    student, teacher = (
        local_to_global.Network(local_to_global.vision_transformer(params, "random", 0.0), params)
        for _ in range(2)
    )
    module = local_to_global.SelfDistillation(student, teacher, MATERIAL, params)
    return module, module.prepare(np.arange(4), 0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fine_tune", ()), ("lesion_pairs", ("pair", False)), ("lesion_pairs", ("pair", True)),
        ("lesion_pairs", ("lesion", True)), ("photograph_pairs", ()), ("distillation", ("dino",)),
        ("distillation", ("lesion",)),
    ],
)  # fmt: skip
def test_a_step_waits_for_nothing(
    method: str, options: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (monkeypatch,) if method == "lesion_pairs" else ()
    module, batch = globals()[method](*options, *more)
    used: list[ModuleType] = [regression, contrastive, local_to_global]
    for file in used:  # mixed precision knows no meta device
        monkeypatch.setattr(file, "exact", lambda _: nullcontext())
    meta = torch.device("meta")
    module.to(meta)
    for _ in range(2):
        loss = module.training_step(module.transfer_batch_to_device(batch, meta, 0), 1)
        loss.backward()
    assert loss.device == meta
    assert len(module.losses) == 2
