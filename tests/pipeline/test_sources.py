"""What Snakemake and DVC watch for each stage is what the stage really imports."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/drgrade"
# the face, params (every value arrives resolved) and tracking do not change results
LEFT_OUT = {"__init__.py", "cli.py", "verbs.py", "tracking.py", "doctor.py"}


def imports(path: Path) -> set[Path]:
    """Files of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("drgrade"):
                file = ROOT / "src" / Path(*name.split(".")).with_suffix(".py")
                if file.exists():
                    found.add(file)
    return found


def closure(start: set[Path]) -> set[str]:
    """All files reached from the start, as paths below src/drgrade."""
    seen, todo = set(), list(start)
    while todo:
        path = todo.pop()
        name = str(path.relative_to(PACKAGE))
        if name in seen or path.name in LEFT_OUT or name.startswith("params/"):
            continue
        seen.add(name)
        todo += imports(path)
    return seen


def verbs() -> dict[str, set[Path]]:
    """The modules that each verb of the command line calls, with the parts it finds by name."""
    tree = ast.parse((PACKAGE / "verbs.py").read_text())
    calls = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    plugins = {
        "download": ["data"],
        "index": ["data"],
        "lesion_boxes": ["data"],
        "lesion_metrics": ["data"],
        "patches": ["data"],
        "pretrain": ["pretrain"],
        "grade": ["grading"],
        "explain": ["data", "grading", "explain"],
    }
    modules = {}
    for stage in sources():
        wanted = {node.module for node in ast.walk(calls[stage]) if isinstance(node, ast.ImportFrom)}
        files = {
            ROOT / "src" / Path(*name.split(".")).with_suffix(".py")
            for name in wanted
            if name.startswith("drgrade.") and name != "drgrade.params"
        }
        modules[stage] = files | {
            path for name in plugins.get(stage, []) for path in (PACKAGE / name).glob("*.py")
        }
    return modules


def sources() -> dict[str, list[str]]:
    """The table of sources.smk."""
    text = (ROOT / "workflow/rules/sources.smk").read_text()
    space: dict = {}
    exec(re.search(r"^TABLES = .*?^}", text, re.M | re.S).group(0), space)
    return space["SOURCES"]


def covers(listed: list[str], name: str) -> bool:
    return name in listed or name.split("/")[0] in listed


@pytest.mark.parametrize("stage", sources())
def test_snakemake_watches_every_import(stage):
    missing = [name for name in closure(verbs()[stage]) if not covers(sources()[stage], name)]
    assert missing == []


@pytest.mark.parametrize("stage", sources())
def test_nothing_is_watched_in_vain(stage):
    reached = closure(verbs()[stage])
    idle = [item for item in sources()[stage] if not any(covers([item], name) for name in reached)]
    assert idle == []


@pytest.mark.parametrize("stage", sources())
def test_dvc_watches_the_same(stage):
    written = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    deps = (written.get("do") or written)["deps"]
    watched = [dep.removeprefix("src/drgrade/") for dep in deps if dep.startswith("src/")]
    assert sorted(watched) == sorted(sources()[stage])


def test_every_rule_has_its_verb_block_and_stage():
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = set(re.findall(r"^rule (\w+):", text, re.M)) - {"all_patches"}  # a name for several jobs
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert rules == stages == set(sources())
    blocks = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert rules <= blocks
