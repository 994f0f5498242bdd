"""The device of networks."""

import pytest
import torch

from drgrade.device import device
from drgrade.errors import UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("threads", ["1", "3"])
def test_threads_of_a_job_do_not_decide_how_sums_are_divided(threads, monkeypatch):
    """Snakemake sets OMP_NUM_THREADS to the threads of the rule, which --cores limits."""
    before = torch.get_num_threads()
    monkeypatch.setenv("DRGRADE_THREADS", threads)
    torch.set_num_threads(2)
    try:
        assert device().type == "cpu"
        assert torch.get_num_threads() == int(threads)
    finally:
        torch.set_num_threads(before)


def test_a_wrong_number_of_threads_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DRGRADE_THREADS", "many")
    with pytest.raises(UserError, match="DRGRADE_THREADS: must be an integer >= 1, not 'many'"):
        device()
