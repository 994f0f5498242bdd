import pytest
import torch
from torch import nn

from drgrade.lesions.amp import ScaledOptimWrapper, half_features


class Network(nn.Module):
    """A backbone and a head that says in what type it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)
        self.inside: list[torch.dtype] = []

    def extract_feat(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.backbone(inputs)
        self.inside.append(features.dtype)
        return (features,)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        (features,) = self.extract_feat(inputs)
        return self.head(features.mean(dim=(2, 3)))


def test_features_are_made_in_16_bits_and_used_in_32() -> None:
    torch.manual_seed(0)
    network, pictures = Network(), torch.randn(2, 3, 8, 8)
    before = network(pictures)
    half_features(network, torch.bfloat16)
    after = network(pictures)
    assert network.inside == [torch.float32, torch.bfloat16]
    assert after.dtype == torch.float32
    assert not after.equal(before)
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.01)
    after.sum().backward()
    assert network.backbone.weight.grad is not None
    assert network.backbone.weight.grad.dtype == torch.float32
    assert list(network.state_dict()) == list(Network().state_dict())


@pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not available")
def test_scaling_the_loss_casts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA the scale is 1: the step is that of plain descent."""
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
    torch.manual_seed(0)
    layer = nn.Linear(3, 1, bias=False)
    start = layer.weight.detach().clone()
    wrapper = ScaledOptimWrapper(
        optimizer=torch.optim.SGD(layer.parameters(), lr=0.5), loss_scale="dynamic", dtype="float16"
    )
    with wrapper.optim_context(layer):
        assert not torch.is_autocast_enabled("cuda")
        loss = layer(torch.ones(1, 3)).sum()
    assert loss.dtype == torch.float32
    wrapper.update_params(loss)
    torch.testing.assert_close(layer.weight.detach(), start - 0.5)
