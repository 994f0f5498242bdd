"""Weights files as the programs of the field write them, each of a small network."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.grading.finetune import Finetune, Params
from drgrade.params import Crop

VIT, RESNET = "test_vit", "test_resnet"
ZERO = torch.zeros(2, 2)


def tensors(name: str, seed: int = 0, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0, **options).state_dict()


def under(prefix: str, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in found.items()}


def mean_pooled(seed: int = 0) -> dict[str, torch.Tensor]:
    return tensors(VIT, seed, global_pool="avg")


FORMS = {
    "mae": (VIT, {"model": tensors(VIT) | {"mask_token": ZERO, "decoder_pos_embed": ZERO,
                  "decoder_blocks.0.norm1.weight": ZERO}, "optimizer": {}, "args": Namespace(lr=1.0)}),
    "dinov2": (VIT, {"teacher": under("backbone.", tensors(VIT) | {"mask_token": ZERO})
                     | {"dino_head.last_layer.weight_v": ZERO, "ibot_head.mlp.0.weight": ZERO}}),
    "ibot": (VIT, {"student": {"module.x": ZERO}, "teacher": under("backbone.", tensors(VIT))
                   | {"backbone.masked_embed": ZERO, "head.mlp.0.weight": ZERO}}),
    "compiled": (VIT, under("_orig_mod.", tensors(VIT))),
    "moco": (RESNET, {"state_dict": under("module.encoder_q.", tensors(RESNET) | {"fc.0.weight": ZERO})
                      | under("module.encoder_k.", tensors(RESNET, 1)) | {"module.queue": ZERO}}),
    "moco_v3": (RESNET, {"state_dict": under("module.base_encoder.", tensors(RESNET))
                         | under("module.momentum_encoder.", tensors(RESNET, 1))
                         | {"module.predictor.0.weight": ZERO}}),
    "simsiam": (RESNET, {"state_dict": under("module.encoder.", tensors(RESNET) | {"fc.0.weight": ZERO})
                         | {"module.predictor.0.weight": ZERO}}),
    "barlow": (RESNET, {"model": under("module.backbone.", tensors(RESNET))
                        | {"module.projector.0.weight": ZERO, "module.bn.running_mean": ZERO}}),
    "byol": (RESNET, under("online_network.", tensors(RESNET))
                     | under("target_network.", tensors(RESNET, 1))),
    "mmselfsup": (RESNET, {"state_dict": under("backbone.", tensors(RESNET)) | {"neck.fc0.weight": ZERO}}),
    "with_scalars": (RESNET, {"model": tensors(RESNET), "best": np.float64(0.9), "epoch": np.int32(3),
                              "ok": np.bool_(True)}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_backbone_of_each_program_is_found(tmp_path: Path, form: str) -> None:
    name, content = FORMS[form]
    torch.save(content, tmp_path / "weights.pth")
    loaded = create_encoder(name, str(tmp_path / "weights.pth")).state_dict()
    assert loaded.keys() == tensors(name).keys()
    assert all(torch.equal(loaded[key], value) for key, value in tensors(name).items())


def test_a_transformer_fine_tuned_on_the_mean_of_its_tokens_pools_like_that(tmp_path: Path) -> None:
    torch.save({"model": mean_pooled() | {"head.weight": ZERO}}, tmp_path / "weights.pth")
    encoder = create_encoder(VIT, str(tmp_path / "weights.pth")).eval()
    source = timm.create_model(VIT, num_classes=0, global_pool="avg").eval()
    source.load_state_dict(mean_pooled())
    side = source.patch_embed.img_size[0]
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), source(images))


def test_a_grader_keeps_the_pooling_of_its_encoder(tmp_path: Path) -> None:
    torch.save(mean_pooled(), tmp_path / "weights.pth")
    grader = Finetune(Params(encoder=VIT, input_size=160), Crop(size=160))
    grader.network = grader.new_network(str(tmp_path / "weights.pth"))
    grader.save(tmp_path / "model")
    loaded = Finetune.load(tmp_path / "model")
    images = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded.network.eval()(images), grader.network.eval()(images))


def test_registers_of_dinov2_are_timms(tmp_path: Path) -> None:
    """In DINOv2's own files the class token has a position, and registers are called otherwise."""
    name = "vit_small_patch14_reg4_dinov2"
    source = tensors(name, depth=1)
    place = torch.rand(1, 1, 384)
    theirs = {key: value for key, value in source.items() if key != "reg_token"} | {
        "register_tokens": source["reg_token"], "mask_token": ZERO,
        "cls_token": source["cls_token"] - place, "pos_embed": torch.cat([place, source["pos_embed"]], dim=1),
    }  # fmt: skip
    torch.save(theirs, tmp_path / "weights.pth")
    loaded = create_encoder(name, str(tmp_path / "weights.pth"), depth=1).state_dict()
    assert loaded.keys() == source.keys()
    for key, value in source.items():
        torch.testing.assert_close(loaded[key], value)


@pytest.mark.parametrize("side", [96, 320])
def test_positions_of_another_size_are_interpolated(tmp_path: Path, side: int) -> None:
    torch.manual_seed(0)
    other = timm.create_model(VIT, num_classes=0, img_size=side).eval()
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    encoder = create_encoder(VIT, str(tmp_path / "weights.pth")).eval()
    assert encoder.pos_embed.shape == tensors(VIT)["pos_embed"].shape
    assert torch.equal(encoder.pos_embed[:, 0], other.pos_embed[:, 0])  # the class token is in no place
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        near = torch.cosine_similarity(encoder(images), other(images))
    assert near > 0.99


def refused(tmp_path: Path, name: str) -> str:
    with pytest.raises(UserError) as error:
        create_encoder(name, str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{tmp_path}/w.pth: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"<!DOCTYPE html><html>Sign in</html>",
            "not a weights file but a web page; download the file again",
        ),
        (b"\n<html lang=en>", "not a weights file but a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "not a weights file but a Git LFS pointer",
        ),
    ],
)
def test_what_is_no_weights_file_is_called_what_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert refused(tmp_path, VIT).startswith(reason)


def test_weights_of_another_width_or_of_a_training_that_diverged_are_refused(tmp_path: Path) -> None:
    torch.save(tensors(VIT, embed_dim=128), tmp_path / "w.pth")
    assert refused(tmp_path, VIT).startswith(
        "cls_token is (1, 1, 128), not (1, 1, 64); these weights belong to"
    )
    diverged = {key: value * float("nan") if value.is_floating_point() else value
                for key, value in tensors(RESNET).items()}  # fmt: skip
    torch.save(diverged, tmp_path / "w.pth")
    assert "has values that are not finite; the training diverged" in refused(tmp_path, RESNET)


class Command:
    """Its pickle would run a command."""

    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_never_executed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"model": tensors(VIT), "args": Command()}, tmp_path / "w.pth")
    assert "holds more than tensors" in refused(tmp_path, VIT)
    assert "executed" not in capsys.readouterr().out
