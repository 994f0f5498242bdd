import re

from drgrade.estimate import estimate, trainings
from drgrade.params import Dataset, Demo, Download, Grade, Index, Params, Roles


def test_a_small_run_says_nothing():
    assert estimate(Params(), cores=2) == []


def test_a_large_run_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = Params(
        datasets={"demo": Dataset(), "eyepacs": Dataset()},
        roles=Roles(pretrain="eyepacs", grade="eyepacs", external=[]),
    )
    lines = estimate(params, cores=2)
    # 88,702 crops of 256 px in RGB are 17.4 GB
    assert "eyepacs: 88702 photographs; disk: 17.4 GB" in lines[0]
    assert lines[1].startswith("grade: 6 trainings")


def test_limit_and_manifest_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roles = Roles(grade="eyepacs", external=[])
    small = Params(datasets={"demo": Dataset(), "eyepacs": Dataset(limit=100)}, roles=roles)
    assert estimate(small, cores=2) == []
    manifest = tmp_path / "results/eyepacs/download/manifest.tsv"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("path\tsize\tsha256\n" + "".join(f"{n}.jpeg\t1\tx\n" for n in range(3000)))
    whole = Params(datasets={"demo": Dataset(), "eyepacs": Dataset()}, roles=roles)
    assert "eyepacs: 3000 photographs" in estimate(whole, cores=2)[0]


def test_trainings_are_experiments_by_seeds_by_folds():
    params = Params(
        index=Index(scheme="kfold", folds=5),
        grade=Grade(select="last"),
        experiments={
            "majority": {"grader": "majority"},
            "probe": {"grader": "linear"},
            "lesion_contrastive": {"start": "lesion_contrastive", "seeds": [0, 1, 2]},
        },
    )
    assert trainings(params) == {"lesion_contrastive": 15}


def test_an_experiment_costs_what_it_sets_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def passes(**own):
        experiments = {
            "majority": {"grader": "majority"},
            "lesion_contrastive": {"start": "imagenet", **own},
        }
        lines = estimate(
            Params(download=Download(demo=Demo(patients=5000)), experiments=experiments), cores=2
        )
        return int(re.search(r"(\d+) photograph passes", lines[-1])[1])

    assert passes() == 10_016 * Grade().epochs
    assert passes(epochs=3) == 10_016 * 3
    assert passes(label_fraction=0.25) == 10_016 * Grade().epochs / 4
