"""Fine-tuning of the last stages: what is trained is the end of the network, and the average is another."""

import pytest
import torch
from benchmarks import fine_tuning as benchmark

from drgrade.encoders import create_encoder


@pytest.fixture
def maps() -> torch.Tensor:
    """Maps (20, 4, 192, 2, 2) that enter the last stage."""
    return torch.randn(20, 4, 192, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("first", [5, 6])
@torch.inference_mode()
def test_the_stages_that_are_trained_are_the_end_of_the_network(first):
    whole = create_encoder(benchmark.LITE0, "imagenet").eval()
    front = torch.nn.Sequential(whole.conv_stem, whole.bn1, *whole.blocks[:first])
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    end = benchmark.LastStages(first, "mse").eval().stages
    torch.testing.assert_close(end(front(image)), whole(image))


@pytest.mark.parametrize("loss", ["mse", "corn"])
def test_scores_are_grades(loss, maps, monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH", 8)
    grades = torch.arange(20) % 5
    networks = benchmark.trained(maps, grades, benchmark.Recipe(loss, epochs=1))
    plain, averaged = (benchmark.scores_of(network, maps) for network in networks)
    for scores in (plain, averaged):
        assert scores.shape == (20,)
        assert ((scores >= 0) & (scores <= 4)).all()
    assert (plain != averaged).any()
