"""The grader that docs/graders.md shows is one file and works as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHECK = """
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from drgrade.errors import UserError
from drgrade.grading.base import Photographs
from drgrade.grading.models import load_model
from drgrade.grading.stage import Inputs, grade
from drgrade.images.dataset import CroppedDataset
from drgrade.params import Crop, check, json_schema
from drgrade.schema import PREDICTIONS, read_table

small = {"grader": "ordinal", "encoder": "test_efficientnet", "start": "random", "input_size": 32}
small |= {"epochs": 1, "batch_size": 4}
params = {"experiments": {"ordinal": small}, "explanations": {"cam": {"experiment": "ordinal"}}}
experiment = check(params, "params.yaml").experiment("ordinal")
wrong = params | {"experiments": {"ordinal": small | {"epoch": 1}}}
with pytest.raises(UserError, match=r"^params.yaml: experiments\\.ordinal\\.epoch: no such key"):
    check(wrong, "params.yaml")
assert '"const": "ordinal"' in json_schema()

folder, out = map(Path, sys.argv[1:])
data = CroppedDataset("own", folder)
grade("ordinal", experiment, Crop(), Inputs(data), seed=0, fold=None, out=out)
table = read_table(out / "predictions.parquet", PREDICTIONS).query("split == 'test'")
grader = load_model(out / "model")
test = data.graded().query("split == 'test'").reset_index(drop=True)
output = grader.predict(Photographs(data.images, test))
written = table[[f"p{k}" for k in range(5)]].to_numpy(float)
np.testing.assert_allclose(output.probabilities, written, atol=1e-6)
np.testing.assert_allclose(output.probabilities.sum(axis=1), 1)
assert (output.probabilities >= 0).all()  # the chances of being above a grade never cross

# by hand: sigmoids of 2, 1, 0, -1 are 0.881, 0.731, 0.5, 0.269
logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
by_hand = [[0.1192029, 0.1497384, 0.2310586, 0.2310586, 0.2689414]]
np.testing.assert_allclose(grader.network.probabilities(logits), by_hand, atol=1e-6)
assert abs(float(grader.network.score(logits)) - 2.3807971) < 1e-6
# of grade 2 the answers are yes, yes, no, no: -(ln 0.881 + ln 0.731 + ln 0.5 + ln 0.731) / 4
assert abs(float(grader.network.loss(logits, torch.tensor([2]))) - 0.3616497) < 1e-6

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
    (package / "grading/ordinal.py").write_text(code)
    data = dataset("own")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "DRGRADE_TRACKING": "off"}
    command = [sys.executable, "-c", CHECK, str(data.folder), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
