"""Sources of a stage on a small package of its own, and digests of code."""

import re
import subprocess
import sys
import textwrap
import time
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from tests.pipeline.fork_server import PYTHON

from drgrade import sources
from drgrade.errors import UserError
from drgrade.sources import code_digest, software, stage_libraries, stage_sources

FILES = {
    "verbs.py": """
        def train():
            from drgrade.models.net import Net
            from drgrade import params
        def draw():
            import drgrade.plots
    """,
    "tracking.py": "import drgrade.plots",
    "params/__init__.py": "from drgrade.plots import line",
    "plots.py": "",
    "models/__init__.py": "",
    "models/net.py": """
        from typing import TYPE_CHECKING
        import numpy
        import drgrade.tracking
        from drgrade.files import read
        if TYPE_CHECKING:
            from drgrade.plots import Line
        else:
            import drgrade.losses
        class Net:
            'A network.'
            depth = 3
            def fit(self):
                from .parts.blocks import Block
    """,
    "files.py": "def read(): ...",
    "losses.py": "from drgrade.models import net  # a circle",
    "models/parts/__init__.py": "from ..extra import more",
    "models/parts/blocks.py": "from . import deep",
    "models/parts/deep/__init__.py": "",
    "models/extra.py": "",
    "models/other.py": "from drgrade.models.parts.deep import *",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "src/drgrade" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "src/drgrade")
    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache/sources.json")
    forget()
    yield tmp_path / "src/drgrade"
    forget()


def forget() -> None:
    """Read files again, as a new process does."""
    for function in vars(sources).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def names(package: Path, *stage: str) -> set[str]:
    return {str(path.relative_to(package)) for path in stage_sources(*stage)}


def test_imports_are_followed_through_functions_and_nested_packages(package):
    assert names(package, "train") == {
        "models/__init__.py", "models/net.py", "files.py", "losses.py", "models/parts/__init__.py",
        "models/extra.py", "models/parts/blocks.py", "models/parts/deep/__init__.py",
    }  # fmt: skip
    assert names(package, "draw") == {"plots.py"}


def test_a_part_found_by_name_is_a_further_root(package):
    assert names(package, "draw", "drgrade.models.other") == {
        "plots.py", "models/__init__.py", "models/other.py", "models/parts/__init__.py", "models/extra.py",
        "models/parts/deep/__init__.py",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"drgrade\.models\.othr: no such module"):
        stage_sources("draw", "drgrade.models.othr")
    with pytest.raises(UserError, match="paint: no such verb"):
        stage_sources("paint")


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("models/net.py", "'A network.'", "'A deep network.'", True),
        ("models/net.py", "depth = 3", "depth = 3  # blocks\n\n", True),
        ("models/net.py", "depth = 3", "depth = 4", False),
        ("models/parts/deep/__init__.py", "", "SIZE = 3", False),
        ("models/other.py", "import *", "import x", True),  # no part of this stage
        ("plots.py", "", "line = 1", True),
    ],
)
def test_the_digest_follows_code_but_not_comments(package, file, old, new, same):
    before = code_digest("train")
    path = package / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new) if old else new)
    forget()
    assert (code_digest("train") == before) == same


def test_the_digest_follows_names_of_files(package):
    before = code_digest("draw", "drgrade.models.extra")
    (package / "models/extra.py").rename(package / "models/more.py")
    forget()
    assert code_digest("draw", "drgrade.models.more") != before


def test_libraries_are_those_of_the_stage_as_locked_else_as_installed(package):
    lock = package.parents[1] / "uv.lock"
    installed = metadata.version("numpy")
    assert stage_libraries("train") == {"numpy": installed}
    assert stage_libraries("draw") == {}
    before = software("train")
    lock.write_text(f'[[package]]\nname = "numpy"\nversion = "{installed}"\n')
    forget()
    assert software("train") == before
    lock.write_text('[[package]]\nname = "numpy"\nversion = "99.0"\n')
    forget()
    assert stage_libraries("train") == {"numpy": f"99.0 (installed: {installed})"}
    (package / "plots.py").write_text("import kagglehub\nimport PIL\nimport not_here\nimport json")
    forget()
    assert stage_libraries("draw").keys() == {"pillow"}


def test_every_library_is_found_by_the_name_it_is_installed_by():
    """A name missing in DISTRIBUTIONS would leave a library out."""
    project = tomllib.loads((sources.PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {re.split(r"[<>=]", line)[0] for line in lines}
    tops = set()
    for path in sources.PACKAGE.rglob("*.py"):
        tops |= {name.split(".")[0] for name in sources._read(path).imports}
    tops -= {"drgrade", "", *sys.stdlib_module_names}
    found = {sources.DISTRIBUTIONS.get(top, top.replace("_", "-")) for top in tops}
    assert found - declared == {"pydantic-core"}  # only its error, in params


def test_all_stages_are_read_well_within_a_second():
    forget()
    start = time.process_time()
    for stage in ("download", "lesion_metrics", "pretrain", "grade", "explain", "report"):
        code_digest(stage)
    assert time.process_time() - start < 2  # 0.6 s where it was written


@pytest.mark.parametrize(
    ("stage", "part"),
    [("grade", "drgrade.grading.linear"), ("pretrain", "drgrade.pretrain.simclr"), ("evaluate", None)],
)
def test_sources_are_what_a_process_really_imports(stage, part):
    """All that is imported is listed; what only some branch imports is listed too."""
    listed = set(stage_sources(stage, *([part] if part else [])))
    roots = {"grade": "drgrade.grading.stage", "pretrain": "drgrade.pretrain.stage"}
    script = f"""
import sys
import {roots.get(stage, "drgrade.evaluate.leaderboard")}
{"import " + part if part else ""}
print(*(m.__file__ for n, m in list(sys.modules.items()) if n.startswith("drgrade.") and m.__file__))
"""
    done = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, check=True)
    imported = {Path(name) for name in done.stdout.split() if "params" not in Path(name).parts}
    assert imported - listed <= {sources.PACKAGE / name for name in sources.LEFT_OUT}
