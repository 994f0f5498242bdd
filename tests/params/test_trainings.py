import pytest

from drgrade.errors import UserError
from drgrade.params import Params
from drgrade.params.trainings import TrainingId, trainings

NAME = "lesion_contrastive"


def params(**index) -> Params:
    return Params.model_validate({"index": index, "experiments": {NAME: {"seeds": [3, 0]}}})


def test_one_training_a_seed_without_cross_validation():
    assert trainings(params(), NAME) == [TrainingId(3, None), TrainingId(0, None)]
    assert [training.label for training in trainings(params(), NAME)] == ["seed3", "seed0"]


def test_a_training_for_each_seed_and_fold():
    found = trainings(params(scheme="kfold", folds=3), NAME)
    assert [training.label for training in found] == [
        "seed3_fold0", "seed3_fold1", "seed3_fold2", "seed0_fold0", "seed0_fold1", "seed0_fold2",
    ]  # fmt: skip


def test_the_scheme_of_the_graded_dataset_counts():
    own = params(scheme="holdout", folds=4).model_dump()
    own["datasets"]["demo"]["scheme"] = "kfold"
    assert len(trainings(Params.model_validate(own), NAME)) == 2 * 4


def test_folds_are_those_of_a_committed_list(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("\ufefffold,image_id\n4,a\n1,b\n4,c\n,left out\n")
    found = trainings(params(scheme="kfold", folds=5, folds_file=str(path)), NAME)
    assert [training.fold for training in found] == [1, 4, 1, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("image_id\na\n", "needs the columns"), ("image_id,fold\na,x\n", "needs the")],
)
def test_a_broken_list_is_named(tmp_path, text, message):
    path = tmp_path / "folds.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"index.folds_file: .*folds.csv: {message}"):
        trainings(params(scheme="kfold", folds_file=str(path)), NAME)
