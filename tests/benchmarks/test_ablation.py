"""The params of the ablation are valid, and name every experiment that its tables read."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks import ablation

from drgrade.params import check


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("sizes", [[128], [256], [128, 256, 512]])
def test_every_row_of_the_tables_is_an_experiment(sizes, quick, monkeypatch):
    known = check(ablation.params(sizes, quick), "ablation").experiments
    read = []

    def noted(folder, experiment, *, fitted=False):
        read.append(experiment)
        return ablation.Row([0.5], np.full(9, 0.5))

    monkeypatch.setattr(ablation, "read", noted)
    for size in sizes:
        assert list(ablation.ladder(Path(), size, "published_")) == list(ablation.STEPS)
    if 128 in sizes:
        ablation.ladder(Path(), 128, "")
        for prefix in ("", "published_"):
            ablation.print_others(Path(), "", prefix, noted(Path(), "majority"))
    assert set(read) <= set(known)
    assert len(known["net_128_4x4"].seeds) == (1 if quick else 3)
