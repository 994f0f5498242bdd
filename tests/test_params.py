import json
from pathlib import Path

import pytest
import yaml

from drgrade.errors import UserError
from drgrade.params import Grade as GradeBlock
from drgrade.params import Params, Pretraining, check, check_block, json_schema, load

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))], ids=lambda p: p.name
)
def test_committed_files_are_valid_and_complete(path):
    written = yaml.safe_load(path.read_text())
    assert json.loads(load(path).model_dump_json()) == written


def test_committed_schema_is_the_models():
    assert (ROOT / "workflow/schemas/params.schema.json").read_text() == json_schema()


def test_every_key_is_described():
    definitions = json.loads(json_schema())["$defs"]
    undescribed = [
        f"{name}.{key}"
        for name, block in definitions.items()
        for key, field in block["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grade": {"lrr": 1.0}}, "params.yaml: grade.lrr: no such key"),
        ({"grade": {"lr": "5"}}, "params.yaml: grade.lr: input should be a valid number, not '5'"),
        ({"grade": {"epochs": 0}}, "params.yaml: grade.epochs: input should be greater than or equal to 1"),
        ({"index": {"scheme": "fold"}}, "params.yaml: index.scheme: input should be 'official'"),
        ({"roles": {"external": ["ddr"]}}, "roles.external: 'ddr' is not one of datasets"),
        ({"roles": {"external": ["demo"]}}, "roles.external: 'demo' trains the graders"),
        ({"index": {"scheme": "file"}}, "datasets.demo.split_file: the scheme 'file' needs a CSV"),
        ({"roles": {"grade": "eyepacs"}}, "roles.grade: 'eyepacs' is not one of datasets (demo, demo_site)"),
        ({"explain": {"experiment": "gone"}}, "explain.experiment: 'gone' is not one of experiments"),
        ({"patches": {"size": 512}}, "patches.size: larger than crop.size"),
        ({"pretrain": {"mae": {}}}, "params.yaml: pretrain.mae: input tag 'mae' found using 'method'"),
        ({"pretrain": {"simclr": {"window": "inside"}}}, "pretrain.simclr.window: no such key"),
        (
            {"pretrain": {"a": {"method": "lesion_contrastive", "temperature": 0}}},
            "params.yaml: pretrain.a.temperature: input should be greater than 0, not 0",
        ),
        ({"pretrain": {"random": {"method": "simclr"}}}, "pretrain.random: experiments start from random"),
        ({"patches": {"published": "a.pkl"}}, "patches.published: its boxes lie in crops of crop.rule o_O"),
        ({"experiments": {"a": {"seeds": []}}}, "experiments.a.seeds"),
        ({"experiments": {"Big Name": {}}}, "experiments.Big Name"),
        ({"experiments": {"a": {"grade": {"lrr": 1}}}}, "params.yaml: experiments.a.grade.lrr: no such key"),
        ({"index": {"val_fraction": 0.5, "test_fraction": 0.5}}, "index.val_fraction: leaves no training"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_path(values, message):
    with pytest.raises(UserError) as caught:
        check(values, "params.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_params(tmp_path):
    (tmp_path / "a.yaml").write_text("grade: [")
    with pytest.raises(UserError, match=r"a\.yaml: not YAML"):
        load(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"b\.yaml: no such file"):
        load(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("")
    assert load(tmp_path / "c.yaml") == Params()


def test_a_pretraining_is_named_after_its_method_or_names_it():
    blocks = check(
        {"pretrain": {"simclr": {"epochs": 3}, "far": {"method": "local_to_global"}}}, "x"
    ).pretrain
    assert (blocks["simclr"].method, blocks["simclr"].epochs) == ("simclr", 3)
    assert blocks["far"].method == "local_to_global"
    assert set(blocks) == {"simclr", "far"}
    with pytest.raises(UserError, match=r"^pretrain.far: lr: input should be greater than 0, not -1"):
        check_block(Pretraining, '{"method": "simclr", "lr": -1}', "pretrain.far")


def test_an_experiment_sets_keys_of_grade_apart():
    params = check(
        {
            "grade": {"lr": 0.5, "knn": {"k": [3]}},
            "experiments": {
                "lesion_contrastive": {"grade": {"epochs": 3, "knn": {"temperature": 0.5}}},
                "b": {},
            },
        },
        "x",
    )
    own, shared = params.grading("lesion_contrastive"), params.grading("b")
    assert (own.lr, own.epochs, own.knn.k, own.knn.temperature) == (0.5, 3, [3], 0.5)
    assert shared == params.grade
    written = json.loads(params.model_dump_json())
    assert written["experiments"]["lesion_contrastive"]["grade"] == {"epochs": 3, "knn": {"temperature": 0.5}}
    assert check(written, "x").grading("lesion_contrastive") == own


def test_a_block_comes_as_json():
    assert check_block(GradeBlock, '{"epochs": 3}', "grade").epochs == 3
    with pytest.raises(UserError, match="grade: Invalid JSON"):
        check_block(GradeBlock, "{", "grade")
