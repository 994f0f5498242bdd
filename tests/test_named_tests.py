"""The page docs/input.md names a test for each thing it says; they must exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py[\w:]*)`", (ROOT / "docs/input.md").read_text())))


def test_the_page_names_tests():
    assert len(NAMED) > 40


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name):
    file, *path = name.split("::")
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
    for part in path:
        found = [
            node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
        ]
        assert found, f"{file} has no {part}"
        body = found[0].body
