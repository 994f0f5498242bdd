import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from tests.export.conftest import network
from tests.export.test_onnx import model_of

from drgrade.export.errors import UnsuitableError
from drgrade.export.onnx import samples
from drgrade.export.timm_folder import write_timm
from drgrade.grading.base import GRADERS, Photographs
from drgrade.grading.o_o import Params as OOParams
from drgrade.images.scaled import scale
from drgrade.params import Crop, Experiment


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_vit"])
def test_timm_loads_the_encoder_with_equal_features(encoder, tmp_path):
    grader = network(encoder)
    assert write_timm(model_of(grader), tmp_path / "timm").startswith(f"{encoder} of seed0, ")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(loaded)
    assert data["input_size"] == (3, 64, 64)
    images = torch.from_numpy(scale(samples(96), 64)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        found = loaded((images - mean) / std)
    expected = grader.predict(Photographs(samples(96), pd.DataFrame({"row": range(5)}))).features
    np.testing.assert_array_equal(found.numpy(), expected)
    assert np.ptp(expected, axis=0).max() > 0
    about = json.loads((tmp_path / "timm/config.json").read_text())
    assert (about["architecture"], about["pretrained_cfg"]["license"]) == (encoder, "other")


def test_a_pooling_that_loading_changed_is_kept(tmp_path):
    from drgrade.checkpoints import pool_like

    grader = network("test_vit")
    pool_like(grader.network, {"encoder.fc_norm.weight"})
    assert grader.network.encoder.global_pool == "avg"
    write_timm(model_of(grader), tmp_path / "timm")
    assert timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).global_pool == "avg"


def test_encoders_that_timm_lacks_are_left_out(tmp_path):
    own = GRADERS.get("o_o")(OOParams(), Crop())
    own.network = own.new_network("random")
    none = GRADERS.get("majority")(Experiment(grader="majority"), Crop())
    for grader, reason in (
        (own, "timm does not know the encoder o_o_128_5x5 of the grader o_o"),
        (none, "the grader majority has no encoder"),
    ):
        with pytest.raises(UnsuitableError, match=reason):
            write_timm(model_of(grader), tmp_path / "timm")


def test_an_encoder_that_timm_does_not_rebuild_is_left_out(tmp_path):
    grader = network("test_efficientnet")
    grader.network.encoder.conv_stem = torch.nn.Conv2d(7, 16, 3)  # reads lesion maps too
    with pytest.raises(UnsuitableError, match="timm does not rebuild the encoder of the grader finetune"):
        write_timm(model_of(grader), tmp_path / "timm")
