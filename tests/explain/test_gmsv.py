"""GMSV heat maps; the algorithm itself is tested in tests/networks/test_deepmt.py."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS
from drgrade.explain.gmsv import disease, stages_of

GMSV = EXPLAINERS.get("gmsv")


class Brightness(nn.Module):
    """Two stages: means of blocks of 4 and of 8 pixels; the score is their mean."""

    feature_info = ({"module": "fine"}, {"module": "coarse"})

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 1, 4, stride=4, bias=False), nn.AvgPool2d(2)
        nn.init.constant_(self.fine.weight, 1 / 48)

    def forward(self, batch: Tensor) -> Tensor:
        return self.coarse(self.fine(batch)).mean(dim=(1, 2, 3))


class Classes(Brightness):
    """Five logits, of which the first would make all maps cold if it counted."""

    def forward(self, batch: Tensor) -> Tensor:
        return super().forward(batch)[:, None] * torch.tensor([-9.0, 1, 1, 1, 1])


def blob(x: int, y: int, side: int = 64) -> Tensor:
    batch = torch.zeros(1, 3, side, side)
    batch[..., y - 4 : y + 4, x - 4 : x + 4] = 1
    return batch


@pytest.mark.parametrize("network", [Brightness, Classes])
@pytest.mark.parametrize(("x", "y"), [(12, 12), (52, 12), (12, 44)])
def test_heat_lies_on_what_speaks_for_disease(network, x, y):
    heat = GMSV().heat(network(), blob(x, y))
    assert heat.shape == (1, 64, 64)
    assert heat.dtype == np.float32
    assert (heat.min(), heat.max()) == pytest.approx((0, 1), abs=0.01)
    rows, columns = np.nonzero(heat[0] > 0.5)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=1)


def test_each_image_is_on_its_own():
    batch = torch.cat([blob(12, 12), 0.1 * blob(52, 44), torch.zeros(1, 3, 64, 64), -blob(20, 20)])
    heat = GMSV().heat(Brightness(), batch)
    np.testing.assert_allclose(heat[1], GMSV().heat(Brightness(), blob(52, 44))[0], atol=1e-5)
    assert heat.max(axis=(1, 2)) == pytest.approx([1, 1, 0, 0], abs=0.01)


def test_what_is_explained():
    logits = torch.tensor([[5.0, 1, 2, 3, 4], [0, -1, 0, 0, 0]])
    assert disease(logits).tolist() == [10, -1]
    assert (
        disease(torch.tensor([1.5, 2])).tolist() == disease(torch.tensor([[1.5], [2]])).tolist() == [1.5, 2]
    )


class Regressor(nn.Module):
    def __init__(self, name: str, **options: object) -> None:
        super().__init__()
        self.encoder = create_encoder(name, "random", **options)
        self.head = nn.Linear(self.encoder.num_features, 1)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.encoder(batch)).squeeze(1)


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0"])
def test_timm_backbones_even_frozen(name):
    torch.manual_seed(0)
    model = Regressor(name).requires_grad_(False)
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    assert len(stages_of(model)) == 4
    heats = []
    for sign in (1, -1):
        model.head.weight.mul_(sign)
        heats.append(GMSV().heat(model, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))))
    assert (np.max(heats, axis=(0, 2, 3)) > 0.8).all()  # of one sign at least
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert not model.training


SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}


@pytest.mark.parametrize(("name", "options"), [("test_vit", {}), ("swin_tiny_patch4_window7_224", SWIN)])
def test_networks_without_such_maps_are_refused(name, options):
    side = 64 if options else 160
    with pytest.raises(UserError, match=r"^explanations.<name>.method: gmsv needs .* has none; use cam"):
        GMSV().heat(Regressor(name, **options), torch.rand(1, 3, side, side))
    with pytest.raises(UserError, match="Linear has none"):
        stages_of(nn.Linear(2, 1))
