"""Servers that the documentation tells to start listen on this machine alone.

``tests/test_web_page.py`` shows that any other address of the web page comes with a warning.
"""

import re
from pathlib import Path

from drgrade.cli import _parser

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "envs").glob("*")),
]
SERVER = re.compile(
    r"(?:mlflow (?:ui|server|models serve)|drgrade demo|tensorboard|jupyter|http\.server)[^`\n]*"
)
EVERYWHERE = re.compile(
    r"0\.0\.0\.0|--host[= ](?!127\.0\.0\.1|localhost)|\[?::\]?(?=[ :]|$)|--share|share=True"
)


def test_documented_servers_listen_on_this_machine_alone() -> None:
    commands = [found[0] for page in PAGES if page.is_file() for found in SERVER.finditer(page.read_text())]
    assert any(command.startswith("mlflow ui") for command in commands)
    assert any(command.startswith("drgrade demo") for command in commands)
    assert [command for command in commands if EVERYWHERE.search(command)] == []


def test_the_web_page_listens_on_this_machine_alone_by_default() -> None:
    assert _parser().parse_args(["demo", "--model", "m"]).host == "127.0.0.1"


def test_mlflow_listens_on_this_machine_alone_by_default() -> None:
    from mlflow.cli import cli

    (host,) = (option for option in cli.commands["server"].params if option.name == "host")
    assert host.default == "127.0.0.1"
    assert "ui" not in cli.commands or cli.commands["ui"].params == cli.commands["server"].params


def test_no_code_of_ours_listens_on_all_addresses() -> None:
    sources = [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "workflow").rglob("*.smk"),
        *(ROOT / "profiles").rglob("*.yaml"),
    ]
    found = [path.name for path in sources if re.search(r"0\.0\.0\.0|share=True", path.read_text())]
    assert found == []
