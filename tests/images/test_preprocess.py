import json

import pytest

from drgrade.images.augment import transforms
from drgrade.images.preprocess import Preprocess
from drgrade.images.statistics import EYEPACS, PUBLISHED, Statistics
from drgrade.params import Augment, Crop
from drgrade.params.block import TestTime

ENCODER = "tf_efficientnet_lite0"
OLD = {"crop": Crop().model_dump(), "size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}


def test_old_models_have_no_test_time_augmentation():
    loaded = Preprocess.from_record(OLD)
    assert (loaded.mean, loaded.std, loaded.size) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 64)
    assert loaded == Preprocess(Crop(), 64, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert loaded.axes == PUBLISHED.axes
    assert loaded.changes() is None


@pytest.mark.parametrize("augment", [None, Augment(zoom=[0.9, 1.1], pca=0.25)])
def test_a_record_keeps_everything(augment):
    statistics = Statistics(
        (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ((1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0))
    )
    made = Preprocess.of(
        ENCODER,
        64,
        Crop(rule="o_O"),
        test_time=TestTime(transforms=5, skip=2),
        augment=augment,
        statistics=statistics,
    )
    loaded = Preprocess.from_record(json.loads(json.dumps(made.record())))
    assert loaded == made
    assert (loaded.mean, loaded.std, loaded.axes) == (statistics.mean, statistics.std, statistics.axes)
    for one, other in zip(loaded.changes(), made.changes(), strict=True):
        assert (one is None) == (other is None)
        assert one is None or one.equal(other)


def test_normalisation_is_the_encoders_unless_statistics_are_given():
    assert Preprocess.of(ENCODER, 64, Crop()).mean == (0.5, 0.5, 0.5)
    assert Preprocess.of(ENCODER, 64, Crop(), statistics=EYEPACS).mean == (0.426, 0.297, 0.213)


def test_transforms_come_from_the_graders_own_augmentation():
    still = Augment(flip=0, rotation=0, scale=[1, 1], ratio=[1, 1], translate=0, contrast=0.3)
    changes = Preprocess.of(ENCODER, 64, Crop(), test_time=TestTime(transforms=5), augment=still).changes()
    assert changes.moves is None
    assert transforms(changes) == 5
    default = Preprocess.of(ENCODER, 64, Crop(), test_time=TestTime(transforms=5)).changes()
    assert default.moves is not None
