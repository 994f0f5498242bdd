import pytest
import torch

from drgrade.encoders import PACKAGED, create_encoder
from drgrade.errors import UserError
from drgrade.lesions import detector

detector.register()

from drgrade.lesions.backbone import TimmBackbone  # noqa: E402

PICTURES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "channels"), [(PACKAGED, [16, 24, 40, 112, 320]), ("resnet18", [64, 64, 128, 256, 512])]
)
def test_levels_have_the_strides_and_channels_configs_count_on(name: str, channels: list[int]) -> None:
    maps = TimmBackbone(name, out_indices=(0, 1, 2, 3, 4)).eval()(PICTURES)
    strides = [2, 4, 8, 16, 32]
    expected = [(2, c, 64 // stride, 96 // stride) for c, stride in zip(channels, strides, strict=True)]
    assert [tuple(level.shape) for level in maps] == expected
    some = TimmBackbone(name, out_indices=(1, 3)).eval()(PICTURES)
    assert [tuple(level.shape) for level in some] == [expected[1], expected[3]]


def test_packaged_weights_are_in_place_and_stay() -> None:
    backbone = TimmBackbone(PACKAGED, start="imagenet").eval()
    backbone.init_weights()
    plain = create_encoder(PACKAGED, "imagenet", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    for ours, theirs in zip(backbone(PICTURES), plain(PICTURES), strict=True):
        assert ours.equal(theirs)


def reached_from(backbone: TimmBackbone, place: int) -> set[str]:
    """Weights that a gradient from one of the maps arrives at."""
    backbone(PICTURES)[place].sum().backward()
    return {key for key, value in backbone.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", [PACKAGED, "resnet18"])
@pytest.mark.parametrize("level", [0, 2])
def test_what_is_frozen_is_exactly_what_the_level_needs(name: str, level: int) -> None:
    backbone = TimmBackbone(name, out_indices=(level, level + 1), frozen_level=level).train()
    frozen = {key for key, value in backbone.named_parameters() if not value.requires_grad}
    below, above = (reached_from(TimmBackbone(name, out_indices=(i,)), 0) for i in (level, level + 1))
    assert frozen == below
    assert reached_from(backbone, 1) == above - below


def test_frozen_norms_keep_their_statistics() -> None:
    def statistics(backbone: TimmBackbone) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in backbone.named_buffers() if "running" in key}

    for norm_eval in (True, False):
        backbone = TimmBackbone("resnet18", frozen_level=1, norm_eval=norm_eval).train()
        before = statistics(backbone)
        backbone(PICTURES)
        moved = {key for key, value in statistics(backbone).items() if not value.equal(before[key])}
        assert not any(key.startswith(("net.bn1", "net.layer1")) for key in moved)
        assert any(key.startswith("net.layer2") for key in moved) is not norm_eval
        assert not any(module.training for module in backbone.eval().modules())


def test_missing_weights_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"resnet18\.safetensors: no such file"):
        TimmBackbone("resnet18", start="imagenet")
