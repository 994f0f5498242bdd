import json
from pathlib import Path
from typing import Annotated

import pytest
import yaml

from drgrade.cli import main
from drgrade.errors import UserError
from drgrade.params import (
    BY_GRADER,
    GRADERS,
    Experiment,
    Params,
    Pretraining,
    check,
    check_block,
    json_schema,
    load,
    parse_start,
)
from drgrade.params import Grade as GradeBlock

ROOT = Path(__file__).parents[1]


def test_params_yaml_says_what_the_defaults_say():
    """Who deletes a line gets the demo's value, not another."""
    assert load(ROOT / "params.yaml") == Params()


def test_a_part_of_the_second_hospital_leaves_its_camera():
    site = check({"download": {"demo_site": {"patients": 9}}}, "params.yaml").download.demo_site
    assert (site.patients, site.segmentation, site.seed, site.camera_shift) == (9, 0, 8, 1.0)


def test_a_part_of_the_augmentations_leaves_the_others_as_published():
    block = {"method": "lesion_contrastive", "augment": {"hue": 0.2}}
    augment = check_block(Pretraining, json.dumps(block), "pretrain.mine").augment
    assert (augment.hue, augment.scale, augment.brightness) == (0.2, [0.8, 1.2], 0.4)


def test_committed_schema_is_the_models():
    assert (ROOT / "workflow/schemas/params.schema.json").read_text() == json_schema()


def test_every_key_is_described():
    definitions = json.loads(json_schema())["$defs"]
    definitions |= {name: GRADERS.get(name).Params.model_json_schema() for name in GRADERS.names()}
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
        (
            {"explanations": {"a": {"experiment": "gone"}}},
            "explanations.a.experiment: 'gone' is not one of experiments",
        ),
        ({"patches": {"size": 512}}, "patches.size: larger than crop.size"),
        (
            {"lesions": {"source": "segmentation"}, "segmentation": {"folds": 3}},
            "segmentation.folds: 3 folds",
        ),
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
        ({"experiments": {"a": {"grade": {"lrr": 1}}}}, "params.yaml: experiments.a.grade: no such key"),
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
    pretrain = {"simclr": {"epochs": 3}, "far": {"method": "local_to_global"}}
    experiments = {"lesion_contrastive": {"start": "simclr"}}
    blocks = check({"pretrain": pretrain, "experiments": experiments}, "x").pretrain
    assert (blocks["simclr"].method, blocks["simclr"].epochs) == ("simclr", 3)
    assert blocks["far"].method == "local_to_global"
    assert set(blocks) == {"simclr", "far"}
    with pytest.raises(UserError, match=r"^pretrain.far: lr: input should be greater than 0, not -1"):
        check_block(Pretraining, '{"method": "simclr", "lr": -1}', "pretrain.far")


def test_an_experiment_overrides_keys_of_grade():
    own = {"epochs": 3, "augment": {"flip": 0.0}}
    params = check(
        {
            "grade": {"lr": 0.5, "input_size": 64, "augment": {"hue": 0.1}},
            "experiments": {
                "lesion_contrastive": own, "b": {},
                "probe": {"grader": "linear"}, "m": {"grader": "majority"},
            },
        },
        "x",
    )  # fmt: skip
    tuned, shared = params.experiment("lesion_contrastive"), params.experiment("b")
    assert (tuned.lr, tuned.epochs, tuned.augment.flip, tuned.augment.hue) == (0.5, 3, 0.0, 0.1)
    assert {key: getattr(shared, key) for key in shared.shared()} == dict(params.grade)
    probe = params.experiment("probe")
    assert probe.input_size == 64  # shared
    assert probe.lr == [0.0003, 0.001, 0.003, 0.01]  # its own, whatever grade.lr is
    assert not hasattr(params.experiment("m"), "lr")
    written = json.loads(params.model_dump_json())
    assert {key: written["experiments"]["lesion_contrastive"][key] for key in own} == own
    assert "lr" not in written["experiments"]["lesion_contrastive"]  # still that of grade
    assert check(written, "x").experiment("lesion_contrastive") == tuned
    whole = tuned.model_dump()
    assert whole["lr"] == 0.5  # a verb is told everything
    assert check_block(Annotated[Experiment, BY_GRADER], json.dumps(whole), "x") == tuned


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        (
            {"a": {"grader": "finetun"}},
            "x: experiments.a: grader: 'finetun': no module drgrade.",
        ),
        ({"a": {"lrr": 1}}, "x: experiments.a.lrr: no such key"),
        ({"a": {"lr": -1.0}}, "x: experiments.a.lr: input should be greater than 0, not -1.0"),
        ({"a": {"grader": "majority", "encoder": "resnet18"}}, "x: experiments.a.encoder: no such key"),
        ({"a": {"start": "imagenett"}}, "x: experiments.a.start: 'imagenett' is none of random, imagenet"),
        ({"a": {"start": "experiment:b"}}, "x: experiments.a: builds on 'b', which is not one of"),
        ({"a": {"start": "experiment:a"}}, "x: experiments.a: builds on itself"),
        (
            {"a": {"start": "experiment:b"}, "b": {"members": ["c"]}, "c": {"start": "experiment:a"}},
            "x: experiments.a: builds on itself, through a, b, c",
        ),
        (
            {"a": {"start": "experiment:b", "seeds": [0, 3]}, "b": {"seeds": [0, 1]}},
            "x: experiments.a.seeds: builds on 'b', which has no seed 3",
        ),
    ],
)
def test_impossible_experiments_are_refused(experiments, message):
    blocks = {"explanations": {}, "experiments": experiments}
    with pytest.raises(UserError) as error:
        check(blocks, "x")
    assert str(error.value).startswith(message)


RECIPES = {
    "grade": {"lr": 0.5, "epochs": 2, "augment": {"hue": 0.1}, "schedule": {"name": "cosine"}},
    "explanations": {},
    "experiments": {
        "o_o": {"grader": "o_o", "checkpoints": ["best_mse", "last"], "out_of_fold": 3},
        "larger": {"grader": "o_o", "encoder": "o_o_256_5x5", "start": "experiment:o_o", "out_of_fold": 3},
        "ram": {"grader": "ram", "encoder": "o_o_ram_512_4x4", "augment": {"translate": 0.2}},
        "published": {"preset": "eyepacs_2021", "encoder": "resnet18", "lr": 0.25},
        "plain": {"loss": "corn", "class_weights": [1.0, 2.0, 3.0, 4.0, 5.0], "augment": {"flip": 0.0}},
        "fused": {"grader": "fusion", "views": 3},
        "blend": {"grader": "blend", "features": ["last", "mse"]},
        "all": {"grader": "ensemble", "members": ["blend", "ram"], "how": "weighted"},
    },
    "features": {
        "last": {
            "experiment": "o_o",
            "checkpoint": "last",
            "transforms": 50,
            "sequence": "halton",
            "skip": 9,
        },
        "mse": {"experiment": "o_o", "checkpoint": "best_mse"},
    },
}


def test_recipes_are_written_as_a_params_file_with_the_same_values(tmp_path: Path, capsys) -> None:
    """``drgrade params`` of what it printed prints the same; verbs are told each experiment in full."""
    params = check(RECIPES, "x")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(RECIPES))
    assert main(["params", str(tmp_path / "params.yaml")]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    again = load(tmp_path / "printed.yaml")
    assert main(["params", str(tmp_path / "printed.yaml")]) == 0
    assert capsys.readouterr().out == printed
    for name in params.experiments:
        experiment = params.experiment(name)
        assert again.experiment(name) == experiment
        whole = json.dumps(experiment.model_dump())
        assert check_block(Annotated[Experiment, BY_GRADER], whole, "x") == experiment
    assert (params.experiment("ram").lr, params.experiment("published").lr) == (1e-4, 0.25)
    assert params.experiment("plain").lr == 0.5
    assert again.features == params.features
    written = yaml.safe_load(printed)["experiments"]
    assert written["plain"]["augment"] == {"flip": 0.0}  # the rest is still that of grade
    assert "lr" not in written["plain"]


NET, BLEND = {"checkpoints": ["last"]}, {"grader": "blend", "features": ["f"]}
ONE_SET = {"f": {"experiment": "net"}}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"experiments": {"net": NET, "b": BLEND | {"features": ["f", "gone"]}}, "features": ONE_SET},
            "experiments.b.features: 'gone' is not one of features (f)",
        ),
        (
            {"experiments": {"b": BLEND}},
            "experiments.b.features: 'f' is not one of features (none)",
        ),
        (
            {"experiments": {"net": NET}, "features": {"f": {"experiment": "gone"}}},
            "features.f.experiment: 'gone' is not one of experiments (net)",
        ),
        (
            {
                "experiments": {
                    "net": {"out_of_fold": 2},
                    "other": {},
                    "b": BLEND | {"features": ["f", "g"]},
                },
                "features": ONE_SET | {"g": {"experiment": "other"}},
            },
            "experiments.b.features: of different out_of_fold (f 2, g 0); set all the same",
        ),
        (
            {
                "experiments": {
                    "net": {"start": "experiment:small", "out_of_fold": 3},
                    "small": {"out_of_fold": 2},
                }
            },
            "experiments.small.out_of_fold: 2, but net, which starts from it, has 3;",
        ),
        (
            {"experiments": {"net": {}, "all": {"grader": "ensemble", "members": ["net"], "out_of_fold": 2}}},
            "experiments.all.out_of_fold: not for an experiment that builds on others; leave it out",
        ),
        (
            {"experiments": {"net": NET, "b": BLEND | {"out_of_fold": 2}}, "features": ONE_SET},
            "experiments.b.out_of_fold: not for an experiment that builds on others; leave it out",
        ),
        (
            {"experiments": {"net": {"out_of_fold": 1}}},
            "experiments.net.out_of_fold: one part would be all training patients; take 2 or more, or 0",
        ),
        (
            {"experiments": {"b": BLEND}, "features": {"f": {"experiment": "b"}}},
            "experiments.b: builds on itself, through b",
        ),
        (
            {
                "experiments": {"b": BLEND, "all": {"grader": "ensemble", "members": ["b"]}},
                "features": {"f": {"experiment": "all"}},
            },
            "experiments.b: builds on itself, through all, b",
        ),
        (
            {"experiments": {"net": {"seeds": [0]}, "b": BLEND | {"seeds": [1]}}, "features": ONE_SET},
            "experiments.b.seeds: builds on 'net', which has no seed 1;",
        ),
        (
            {"experiments": {"net": NET}, "features": {"f": {"experiment": "net", "checkpoint": "best_mse"}}},
            "features.f.checkpoint: net does not save 'best_mse'; add it to that experiment's checkpoints",
        ),
        (
            {"experiments": {"m": {"grader": "majority"}}, "features": {"f": {"experiment": "m"}}},
            "features.f.experiment: the grader 'majority' of m has no encoder; name another experiment",
        ),
        (
            {
                "experiments": {"net": {"checkpoints": ["best"], "select": "last"}},
                "features": {"f": {"experiment": "net", "checkpoint": "best"}},
                "index": {"scheme": "kfold"},
            },
            "features.f.checkpoint: net has no validation photographs to choose 'best' by; take last, or set "
            "experiments.net.select to best",
        ),
        (
            {
                "experiments": {"net": {"checkpoints": ["best_mse"]}},
                "features": {"f": {"experiment": "net", "checkpoint": "best_mse"}},
                "index": {"scheme": "official", "val_fraction": 0.0},
            },
            "features.f.checkpoint: net has no validation photographs to choose 'best_mse' by; take last, or "
            "set index.val_fraction above 0",
        ),
        (
            {"experiments": {"net": {"grader": "o_o", "encoder": "resnet18"}}},
            "experiments.net.encoder: must be a network of o_O, such as o_o_128_5x5; for others take",
        ),
    ],
)
def test_features_that_cannot_be_made_are_refused(blocks, message):
    with pytest.raises(UserError) as error:
        check({"explanations": {}} | blocks, "x")
    assert str(error.value).startswith(f"x: {message}")
    assert "\n" not in str(error.value)


def test_features_of_all_kinds_of_checkpoints_are_let_through():
    """Of the last epoch with cross-validation too, where nothing validates, and of the best that is kept."""
    net = {"checkpoints": ["best", "last"], "out_of_fold": 2}
    sets = {name: {"experiment": "net", "checkpoint": name} for name in ("selected", "best", "last")}
    blocks = {"explanations": {}, "features": sets, "index": {"scheme": "kfold"}}
    blend = {"grader": "blend", "features": ["best", "last"]}
    found = check(blocks | {"experiments": {"net": net, "b": blend}}, "x")
    assert found.depends_on("b") == ["net", "net"]
    del sets["best"]
    check(blocks | {"experiments": {"net": net | {"select": "last"}}}, "x")


def test_members_bring_the_feature_sets_they_are_fitted_on():
    found = check(RECIPES, "x")
    assert found.feature_sets("all") == found.feature_sets("blend") == ["last", "mse"]
    assert found.depends_on("blend") == ["o_o", "o_o"]
    assert found.built_on("all") == ["blend", "ram"]
    assert found.built_on("larger") == ["o_o"]


def test_a_grader_that_needs_lesions_needs_them_of_the_dataset_it_grades(monkeypatch):
    """The detector searches the photographs of roles.pretrain."""
    values = {"roles": {"pretrain": "demo", "grade": "demo_site", "external": []}}
    check(values, "x")
    monkeypatch.setattr(GRADERS.get("finetune"), "needs", frozenset({"boxes"}))
    with pytest.raises(UserError, match=r"experiments\.random: its grader needs lesions of demo_site"):
        check(values, "x")
    check({}, "x")


def test_a_start_is_a_word_an_encoder_an_experiment_or_a_file():
    assert parse_start("random") == ("random", "random")
    assert parse_start("simclr", ["simclr"]) == ("pretrain", "simclr")
    assert parse_start("experiment:o_o_128") == ("experiment", "o_o_128")
    assert parse_start("weights.pth") == ("file", "weights.pth")
    assert parse_start("./weights") == ("file", "./weights")
    params = check({"experiments": {"lesion_contrastive": {"start": "lesion_contrastive"}}}, "x")
    assert params.start("lesion_contrastive") == ("pretrain", "lesion_contrastive")


def test_a_block_comes_as_json():
    assert check_block(GradeBlock, '{"epochs": 3}', "grade").epochs == 3
    with pytest.raises(UserError, match="grade: Invalid JSON"):
        check_block(GradeBlock, "{", "grade")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "grade:\n  lr: 1e-3\n",
            "should be a valid number, not '1e-3' (text); write 1.0e-3 (line 2)",
        ),
        (
            "grade: {epochs: '3'}\n",
            "grade.epochs: input should be a valid integer, not '3' (text); write 3",
        ),
        ("grade:\n  epochs: 3\n  lr: .inf\n", "grade.lr: input should be a finite number, not inf (line 3)"),
        ("grade: {lr: .nan}\n", "grade.lr: input should be a finite number, not nan (line 1)"),
        (
            "grade: {epochs: 3}\nindex: {}\ngrade: {}\n",
            "key 'grade' stands twice, in lines 1 and 3; keep one",
        ),
        ("grade:\n  epochs: 3\n  epochs: 4\n", "key 'epochs' stands twice, in lines 2 and 3; keep one"),
        ("index: {}\n# caf\xe9\n".encode("latin-1"), "line 2: not UTF-8 text; save the file as UTF-8"),
        ("index: {}\n".encode("utf-16"), "line 1: not UTF-8 text; save the file as UTF-8"),
        (
            "experiments:\n  a: {grader: majority, seeds: [1, 1]}\n",
            "experiments.a.seeds: seed 1 stands twice; each is one training, so leave one out",
        ),
    ],
)
def test_mistakes_that_yaml_hides_name_key_line_and_remedy(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load(file)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes("\ufeffgrade: {epochs: 3}\n".encode())
    assert load(tmp_path / "params.yaml").grade.epochs == 3


def test_a_feature_set_uses_the_networks_of_all_parts_or_the_one_trained_on_all():
    params = check(
        {
            "experiments": {"net": {"out_of_fold": 4}},
            "features": {
                "unseen": {"experiment": "net"},
                "seen": {"experiment": "net", "out_of_fold": False},
            },
            "explanations": {},
        },
        "params.yaml",
    )
    assert [params.parts_of_features(name) for name in ("unseen", "seen")] == [4, 0]
    both = params.model_dump() | {
        "experiments": {"net": {"out_of_fold": 4}, "b": {"grader": "blend", "features": ["unseen", "seen"]}}
    }
    with pytest.raises(UserError, match=r"of different out_of_fold \(unseen 4, seen 0\)"):
        check(both, "params.yaml")
