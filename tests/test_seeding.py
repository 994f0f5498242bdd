import pytest
import torch

from drgrade.errors import UserError
from drgrade.seeding import THREADS, seed_everything, torch_threads


def test_threads_are_two_or_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS)
    assert torch_threads() == 2
    monkeypatch.setenv(THREADS, "3")
    assert torch_threads() == 3
    for wrong in ("0", "two", "-1", ""):
        monkeypatch.setenv(THREADS, wrong)
        with pytest.raises(UserError, match=f"^{THREADS}: must be an integer >= 1, not '{wrong}'"):
            torch_threads()


def test_seeding_fixes_threads_and_draws() -> None:
    seed_everything(1, "stage")
    first = torch.rand(3)
    seed_everything(1, "stage")
    assert torch.equal(first, torch.rand(3))
    assert torch.get_num_threads() == torch_threads()
