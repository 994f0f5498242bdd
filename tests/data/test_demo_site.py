import hashlib
from pathlib import Path

import pytest
from PIL import Image

from drgrade.data.demo import Demo
from drgrade.data.download import download
from drgrade.data.listing import read_manifest
from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.params import Demo as DemoParams
from drgrade.params import Download

pytestmark = pytest.mark.usefixtures("forked_pools")
SITE = DemoParams(patients=5, segmentation=0, width=256, camera_shift=1.0)
"""With the seed of the demo: even then its people are others."""
BOTH = Download(demo=DemoParams(patients=6, segmentation=2, width=256), demo_site=SITE)


@pytest.fixture(scope="module")
def roots(forked_pools: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both hospitals, painted through the verb."""
    folder = tmp_path_factory.mktemp("hospitals")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("demo", "demo_site"):
            patch.setenv(f"DRGRADE_{name.upper()}_ROOT", str(folder / name))
            assert raw_root(name) == folder / name
            download(name, BOTH, folder / f"{name}.tsv")
    return {name: folder / name for name in ("demo", "demo_site")}


def test_its_own_block_is_painted_and_read_by_the_same_readers(roots: dict[str, Path]) -> None:
    root = roots["demo_site"]
    table = DATASETS.get("demo_site")().read(root)
    assert list(table.columns) == list(Demo().read(roots["demo"]).columns)
    assert len(table) == 2 * SITE.patients
    assert table["image_id"].is_unique
    assert set(table["subset"]) == {"grading"}
    assert set(table["grade"]) <= {0, 1, 2, 3, 4}
    assert all((root / path).is_file() for path in table["path"])
    for path in table["path"]:
        width, height = Image.open(root / path).size
        assert width / height == pytest.approx(4 / 3, abs=0.02)
    listed = set(read_manifest(root.parent / "demo_site.tsv"))
    assert listed == {*table["path"], "eyepacs/trainLabels.csv", "eyepacs/retinopathy_solution.csv"}


def test_no_patient_and_no_photograph_is_in_both(roots: dict[str, Path]) -> None:
    tables = {name: DATASETS.get(name)().read(root) for name, root in roots.items()}
    for column in ("image_id", "patient_id"):
        assert set(tables["demo"][column]).isdisjoint(tables["demo_site"][column])
    hashes = [
        {hashlib.sha256((root / path).read_bytes()).hexdigest() for path in tables[name]["path"]}
        for name, root in roots.items()
    ]
    assert hashes[0].isdisjoint(hashes[1])
    assert len(hashes[1]) == 2 * SITE.patients


def test_with_segmentation_it_has_masks(tmp_path: Path) -> None:
    site = DATASETS.get("demo_site")()
    site.download(tmp_path, Download(demo_site=SITE.model_copy(update={"segmentation": 2})))
    table = site.read(tmp_path)
    marked = table.loc[table["subset"] == "segmentation", "image_id"]
    assert len(marked) == 2
    for image_id in marked:
        masks = site.masks(tmp_path, image_id)
        assert set(masks) >= {"MA", "HE", "EX"}
        assert all(path.is_file() for path in masks.values())


def test_files_of_others_are_left_alone_and_the_remedy_names_its_variable(tmp_path: Path) -> None:
    (tmp_path / "eyepacs").mkdir()
    with pytest.raises(UserError, match="DRGRADE_DEMO_SITE_ROOT"):
        DATASETS.get("demo_site")().download(tmp_path, BOTH)
