"""The grader that docs/graders.md shows is one file and works as it stands there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.pipeline.fork_server import PYTHON

ROOT = Path(__file__).parents[2]

CHECK = """
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from drgrade.checkpoints import read_tensors
from drgrade.errors import UserError
from drgrade.grading.base import Photographs
from drgrade.grading.models import load_model
from drgrade.grading.stage import Inputs, grade
from drgrade.images.dataset import CroppedDataset
from drgrade.params import Crop, check, json_schema
from drgrade.schema import PREDICTIONS, read_table

small = {"grader": "soft_labels", "encoder": "test_efficientnet", "start": "random", "input_size": 32}
small |= {"epochs": 2, "batch_size": 4, "class_weights": "balance", "checkpoints": ["last"]}
params = {"experiments": {"soft": small}, "explanations": {"cam": {"experiment": "soft"}}}
experiment = check(params, "params.yaml").experiment("soft")
for key, value, message in (("epoch", 1, "no such key"), ("width", 0.01, ".*0.1")):
    wrong = params | {"experiments": {"soft": small | {key: value}}}
    with pytest.raises(UserError, match=rf"^params.yaml: experiments\\.soft\\.{key}: {message}"):
        check(wrong, "params.yaml")
assert '"const": "soft_labels"' in json_schema()

folder, out = map(Path, sys.argv[1:])
data = CroppedDataset("own", folder)
grade("soft", experiment, Crop(), Inputs(data), seed=0, fold=None, out=out)
table = read_table(out / "predictions.parquet", PREDICTIONS).query("split == 'test'")
grader = load_model(out / "model")
test = data.graded().query("split == 'test'").reset_index(drop=True)
output = grader.predict(Photographs(data.images, test))
written = table[[f"p{k}" for k in range(5)]].to_numpy(float)
np.testing.assert_allclose(output.probabilities, written, atol=1e-6)
np.testing.assert_allclose(output.probabilities.sum(axis=1), 1)
saved, last = (read_tensors(out / f"model/{name}.safetensors") for name in ("model", "model_last"))
assert saved.keys() == last.keys() == grader.network.state_dict().keys()

# by hand: softmax of these logits is 1/6, 2/6, 1/6, 1/6, 1/6, and (0 + 2 + 2 + 3 + 4) / 6 is the score
network = grader.network.cpu()
logits = torch.tensor([[0.0, math.log(2), 0.0, 0.0, 0.0]])
np.testing.assert_allclose(network.probabilities(logits), [[1 / 6, 2 / 6, 1 / 6, 1 / 6, 1 / 6]], atol=1e-6)
assert abs(float(network.score(logits)) - 11 / 6) < 1e-6
# targets of width 0.5: of grade 2 in proportion to exp(-8), exp(-2), 1, exp(-2), exp(-8)
shares = [0.0002639, 0.1064508, 0.7865707, 0.1064508, 0.0002639]
np.testing.assert_allclose(network.targets[2], shares, atol=1e-6)
# losses: ln 6 - 0.1064508 ln 2 of grade 2, ln 6 - 0.1191677 ln 2 of grade 0
assert abs(float(network.loss(logits, torch.tensor([2]))) - 1.7179734) < 1e-6
both, grades = logits.expand(2, 5), torch.tensor([0, 2])
assert abs(float(network.loss(both, grades)) - 1.7135661) < 1e-6
weighted = network.loss(both, grades, torch.tensor([1.0, 1.0, 3.0, 1.0, 1.0]))
assert abs(float(weighted) - 1.7157697) < 1e-6
wide = grader.Params.model_validate({**small, "width": 2.0})
assert type(grader)(wide, Crop()).new_network("random").targets[0, 1] > network.targets[0, 1]

network = grader.explainable().network
batch = torch.rand(2, 3, 32, 32, device=next(network.parameters()).device, requires_grad=True)
network(batch).sum().backward()
assert batch.grad.abs().sum() > 0  # heat maps are drawn of this gradient
"""


def test_the_grader_of_the_docs_is_one_file(dataset, tmp_path):
    (code,) = re.findall(
        r"## An example\n.*?```python\n(.*?)```", (ROOT / "docs/graders.md").read_text(), re.S
    )
    package = tmp_path / "src/drgrade"
    shutil.copytree(ROOT / "src/drgrade", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "grading/soft_labels.py").write_text(code)
    data = dataset("own")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "DRGRADE_TRACKING": "off"}
    command = [*PYTHON, "-c", CHECK, str(data.folder), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
