"""Small trained models, as the stage grade leaves them in the results."""

import json
from pathlib import Path

import pytest
import torch

from drgrade.grading.finetune import Finetune, Params
from drgrade.params import Crop


def network(encoder="test_efficientnet", seed=0, **params) -> Finetune:
    """A grader that has learnt nothing, with a head that makes its scores differ."""
    grader = Finetune(Params(encoder=encoder, input_size=64, **params), Crop(size=96))
    torch.manual_seed(seed)
    grader.network = grader.new_network("random")
    for name, value in grader.network.head.named_parameters():
        torch.nn.init.normal_(value, mean=2.0 if name == "bias" else 0.0)
    return grader


@pytest.fixture
def results(tmp_path) -> Path:
    """Folder of an experiment with two seeds, in its place in the results of the dataset demo."""
    folder = tmp_path / "results/demo/grade/net"
    for seed in range(2):
        network(seed=seed).save(folder / f"seed{seed}/model")
        record = {"seed": seed, "start": {"weights": "random", "seed": seed}}
        (folder / f"seed{seed}/training.json").write_text(json.dumps(record))
    return folder
