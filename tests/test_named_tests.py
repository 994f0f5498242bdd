"""The pages docs/input.md and docs/reliability.md name a test for each thing they say; they must exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / f"docs/{name}.md").read_text() for name in ("input", "reliability")}
NAMED = {name: set(re.findall(r"`(tests/[\w/]+\.py[\w:]*)`", text)) for name, text in PAGES.items()}


def test_the_pages_name_tests():
    assert len(NAMED["input"]) > 40
    assert len(NAMED["reliability"]) > 30


def test_every_promise_names_a_test():
    lines = [line for line in PAGES["reliability"].splitlines() if line.startswith("| ")]
    promises = [line for line in lines if line != "| promise | test |"]
    assert [line for line in promises if not re.search(r"\| `tests/[^|]+ \|$", line)] == []


@pytest.mark.parametrize("name", sorted(NAMED["input"] | NAMED["reliability"]))
def test_a_named_test_exists(name):
    file, *path = name.split("::")
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
    for part in path:
        found = [
            node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
        ]
        assert found, f"{file} has no {part}"
        body = found[0].body
