"""The benchmark for GPUs runs on a CPU at toy size: its checks hold, and it prints what it promises."""

import json
import subprocess
from pathlib import Path

from tests.pipeline.fork_server import PYTHON

FILE = Path(__file__).parents[2] / "benchmarks/gpu.py"


def test_checks_hold_at_toy_size() -> None:
    command = [*PYTHON, str(FILE), "--toy", "--only", "finetune test_e", "lesion", "local"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) >= {"name", "value", "unit", "baseline", "ratio", "target", "holds"}
    assert result["holds"]
    names = ["finetune test_efficientnet 32", "lesion_contrastive test_resnet 16", "local_to_global test_vit"]
    assert list(result["parts"]) == names
    for name in names:
        part = result["parts"][name]
        assert part["checks"] == {"loss goes down": True, "bfloat16 is float32": True, "resumes": True}
        assert min(part["ours"], part["ready"], part["limit"]) > 0
        assert 0 <= part["waiting"] < 1
