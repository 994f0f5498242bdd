"""No call runs code from data, and what the rules pass to the shell is quoted."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
)
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads", "shelve.open",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "pd.read_pickle",
    "yaml.unsafe_load", "yaml.full_load", "shutil.unpack_archive", "tempfile.mktemp",
    "torch.hub.load", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
"""Calls that run code from a file or from text, or write where a file says."""
ALLOWED = {
    ("src/drgrade/data/archives.py", "extractall without a filter"): "zip members are checked before",
    ("src/drgrade/params/read.py", "yaml.load"): "_Loader is a SafeLoader, see the test below",
}
"""Calls that look like one of them, and why they are none."""


def dangers(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call that runs code from data, or may."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name, options = ast.unparse(call.func), {option.arg: option.value for option in call.keywords}
        constants = {key: value.value for key, value in options.items() if isinstance(value, ast.Constant)}
        if name in NEVER:
            yield call.lineno, name
        if constants.get("shell", False) is not False or ("shell" in options and "shell" not in constants):
            yield call.lineno, "shell"
        if name == "torch.load" and constants.get("weights_only") is not True:
            yield call.lineno, "torch.load without weights_only"
        if name in ("yaml.load", "yaml.load_all"):
            yield call.lineno, name
        if "allow_pickle" in options and constants.get("allow_pickle") is not False:
            yield call.lineno, "allow_pickle"
        if name.endswith(".extractall") and "filter" not in options:
            yield call.lineno, "extractall without a filter"


def test_no_call_runs_code_from_data() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name): line
        for path in MODULES
        for line, name in dangers(path.read_text(encoding="utf-8"))
    }
    assert found.keys() == ALLOWED.keys(), found


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)", "os.system('x')", "subprocess.run(x, shell=True)", "subprocess.run(x, shell=y)",
        "torch.load(x)", "torch.load(x, weights_only=False)", "pickle.loads(x)", "yaml.load(x, Loader)",
        "tar.extractall(x)", "np.load(x, allow_pickle=True)", "with a: b = [exec(c) for c in d]",
    ],
)  # fmt: skip
def test_the_search_finds(source: str) -> None:
    assert len(list(dangers(source))) == 1


def test_the_loader_of_params_is_a_safe_one() -> None:
    import yaml

    from drgrade.params.read import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    assert not issubclass(_Loader, (yaml.FullLoader, yaml.UnsafeLoader))


UNQUOTED = {
    "a dataset's name, which has letters, digits and underscores alone": {
        "dataset", "lesions_dataset", "pretrain_dataset", "external", "indexes",
    },
    "a path that consists of such names": {
        "folder", "boxes", "table", "models", "lesions", "segmentation", "robustness",
        "trainings", "described", "evaluated", "index", "split", "store",
    },
    "a number, or a word that common.smk chooses": {
        "patch", "size", "limit", "numbers", "shard", "training", "by_fold",
    },
    "options with paths of the user, each quoted in common.smk": {"lists", "options"},
}  # fmt: skip
"""Params that the rules pass to the shell without ``:q``, and why that is safe."""


def commands() -> Iterator[tuple[str, str]]:
    """File and shell command of each rule."""
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for found in re.finditer(
            r"^    shell:\n((?: {8}.*\n?)+)", file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            yield file.name, " ".join(ast.literal_eval(line.strip()) for line in found[1].splitlines())


def test_what_a_user_writes_is_quoted_in_shell_commands() -> None:
    """Paths of the user are inputs without a name, which no command mentions."""
    safe, found = set().union(*UNQUOTED.values()), list(commands())
    assert len(found) > 15
    for file, command in found:
        for kind, quoted in re.findall(r"\{([^{}:]+)(:q)?\}", command):
            if kind.startswith("params.") and not quoted:
                assert kind.removeprefix("params.") in safe, f"{file}: {{{kind}}} needs :q"
            assert kind not in ("input", "params"), f"{file}: {{{kind}}} may hold a path of the user"
        assert "$(" not in command
        assert "`" not in command


def test_options_with_paths_of_the_user_are_quoted() -> None:
    """In ``common.smk``, whatever is not made of names goes through ``shlex.quote``."""
    common = (ROOT / "workflow/rules/common.smk").read_text(encoding="utf-8")
    assert "{option} {shlex.quote(path)}" in common
    assert "--start {shlex.quote(start)}" in common
    unquoted = re.findall(r"--[a-z-]+ \{(?!shlex)([a-z_]*(?:path|file|start)[a-z_]*)\}", common)
    assert unquoted == []
