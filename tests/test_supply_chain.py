"""What is installed: pinned by digest, listed with licences, none of them AGPL."""

import importlib.util
import json
import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
PAGE = (ROOT / "docs/supply_chain.md").read_text()


def files(package):
    return [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]


def listed(components):
    """Name, version and digests of the files of each component."""
    return {
        (one["name"], one["version"]): {
            file["content"] for source in one["externalReferences"] for file in source["hashes"]
        }
        for one in components
    }


@pytest.fixture(scope="module")
def sbom():
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "envs/sbom.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def components(sbom):
    return json.loads(sbom.SBOM.read_text())["components"]


def test_every_file_of_the_lock_has_a_sha256():
    others = [package for package in LOCK["package"] if package["name"] != "drgrade"]
    assert len(others) > 200
    assert [package["name"] for package in others if not files(package)] == []
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]) for one in others for file in files(one))


def test_the_committed_list_is_of_the_lock(sbom, components):
    assert listed(components) == listed(sbom.bill()["components"]), "run `uv run python envs/sbom.py`"
    assert all(one["licenses"][0]["license"]["name"] for one in components)


def test_the_same_lock_gives_the_same_list(sbom):
    assert sbom.bill() == sbom.bill()


def test_nothing_installed_is_agpl(sbom):
    """Of development too; licence texts are read as well, since metadata may say nothing."""
    names = {package.metadata["Name"]: sbom.stated(package) for package in distributions()}
    assert names["numpy"].startswith("BSD-3-Clause")
    assert [name for name, stated in names.items() if re.search("AGPL|Affero", stated, re.IGNORECASE)] == []
    texts = {
        package.metadata["Name"]: package.locate_file(file).read_text(errors="replace").lstrip()[:200]
        for package in distributions()
        for file in package.files or []
        if ".dist-info/" in str(file) and re.search("LICEN[CS]E|COPYING", str(file), re.IGNORECASE)
        if package.locate_file(file).is_file()
    }
    assert len(texts) > 100
    assert [name for name, text in texts.items() if "AFFERO" in text.upper()] == []


def test_other_copyleft_licences_are_explained(components):
    copyleft = {
        one["name"] for one in components if re.search(r"GPL|GNU", one["licenses"][0]["license"]["name"])
    }
    assert copyleft  # DVC needs pygit2
    assert copyleft == set(re.findall(r"^\| ([\w-]+) \|.*GPL", PAGE, re.MULTILINE))
