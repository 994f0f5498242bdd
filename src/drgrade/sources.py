"""Code and libraries that a stage depends on, found by following its imports.

Snakemake does not track imported modules, so every rule has :func:`software` among its params, and an
interrupted training is resumed only if it is unchanged. Comments and docstrings are ignored.
"""

import ast
import contextlib
import hashlib
import json
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from drgrade.errors import UserError
from drgrade.files import write_file
from drgrade.rank import rank

PACKAGE = Path(__file__).parent
LEFT_OUT = {
    "__init__.py", "__main__.py", "cli.py", "verbs.py", "tracking.py", "doctor.py", "estimate.py",
    "tracking_store.py", "publish.py", "sources.py", "plugins.py", "devices.py", "check.py", "run_lock.py",
}  # fmt: skip
"""Files directly below ``src/drgrade`` that affect no result. ``params/`` is left out too: its values are
params of the rules."""
LOCK = "uv.lock"
"""The lock file, in the folder that contains ``src``."""
DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "lightning_fabric": "pytorch-lightning",
    "mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection", "mmengine": "onedl-mmengine",
    "pytorch_grad_cam": "grad-cam", "sklearn": "scikit-learn", "yaml": "pyyaml",
}  # fmt: skip
"""Package names by import name, where the two differ by more than ``_`` and ``-``."""
FETCHING = {"kagglehub"}
"""Packages that only download files: the files are recorded in the manifest."""
CACHE = Path(".cache/drgrade/sources.json")
"""Cache of parsed files, by content: parsing all would take a second at each start of Snakemake."""


class _Source(NamedTuple):
    """A parsed file: the names it imports, and a digest of its code."""

    imports: frozenset[str]
    code: str


@cache
def stage_sources(stage: str, *parts: str) -> tuple[Path, ...]:
    """Files that a stage imports, directly or through others, sorted.

    Imports inside functions count, those for type checkers only do not.

    Args:
        stage: a verb, a function of :mod:`drgrade.verbs`.
        parts: modules that the stage loads by name, such as ``drgrade.grading.finetune``
            (:class:`drgrade.plugins.Registry`).

    Raises:
        UserError: no such verb or module.
    """
    todo = list(_files(tuple(_verb_imports(stage))))
    for part in parts:
        if part not in _modules():
            raise UserError(f"{part}: no such module in src/drgrade; is the name spelled right?")
        todo += _files((part,))
    seen: set[Path] = set()
    known = len(_known())
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += _files(_read(path).imports)
    if len(_known()) > known:
        _write_cache()
    return tuple(sorted(seen))


def code_digest(stage: str, *parts: str) -> str:
    """SHA-256 of a stage's code without comments and docstrings; arguments as for :func:`stage_sources`.

    Python versions may give different digests, as their syntax trees differ.
    """
    code = [[_name(path), _read(path).code] for path in stage_sources(stage, *parts)]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def stage_libraries(stage: str, *parts: str) -> dict[str, str]:
    """Versions of the packages that a stage imports, by name; arguments as for :func:`stage_sources`.

    Excluded are packages that only tracking or the command line import, such as MLflow, packages that only
    download files, and packages that are neither locked nor installed.
    """
    files = stage_sources(stage, *parts)
    names = set(_verb_imports(stage)).union(*(_read(path).imports for path in files))
    tops = {name.split(".")[0] for name in names} - {"drgrade", *sys.stdlib_module_names}
    packages = {DISTRIBUTIONS.get(top, top.replace("_", "-")) for top in tops} - FETCHING
    found = {package: _version(package) for package in packages}
    return {name: version for name, version in sorted(found.items()) if version is not None}


@cache
def software(stage: str, *parts: str) -> str:
    """One line that changes with a stage's code and with the versions of the libraries it imports."""
    versions = [f"{name} {version}" for name, version in stage_libraries(stage, *parts).items()]
    return ", ".join([f"drgrade {code_digest(stage, *parts)[:16]}", *versions])


@cache
def _version(package: str) -> str | None:
    """Locked version, followed by the installed one if it differs; the installed one if none is locked."""
    locked = _locked(PACKAGE.parents[1] / LOCK).get(package)
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return locked
    return installed if locked in (None, installed) else f"{locked} (installed: {installed})"


@cache
def _locked(file: Path) -> dict[str, str]:
    """Versions by package; empty where there is no lock file, as after ``pip install``."""
    if not file.is_file():
        return {}
    packages = tomllib.loads(file.read_text(encoding="utf-8"))["package"]
    return {package["name"]: package["version"] for package in packages if "version" in package}


@cache
def _verb_imports(stage: str) -> frozenset[str]:
    """Names that the function of a verb imports."""
    for node in _tree(PACKAGE / "verbs.py").body:
        if isinstance(node, ast.FunctionDef) and node.name == stage:
            return frozenset(_imports(node, "drgrade"))
    raise UserError(f"{stage}: no such verb in {PACKAGE / 'verbs.py'}")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def _read(path: Path) -> _Source:
    name = Path(_name(path))
    key = hashlib.sha256(f"{sys.version} {name}\n".encode() + path.read_bytes()).hexdigest()
    known = _known()
    if key not in known:
        tree = _tree(path)
        imports = sorted(set(_imports(tree, ".".join(["drgrade", *name.parent.parts]))))
        code = hashlib.sha256(ast.dump(_WithoutDocstrings().visit(tree)).encode()).hexdigest()
        known[key] = [code, *imports]
    code, *imports = known[key]
    return _Source(frozenset(imports), code)


@cache
def _known() -> dict[str, list[str]]:
    """The cache: by key of :func:`_read`, digest of the code and imports; empty if it cannot be read."""
    try:
        return dict(json.loads(CACHE.read_text()))
    except (OSError, ValueError):
        return {}


def _write_cache() -> None:
    """Write the cache; errors are ignored, as they only cost the time of parsing again."""
    if rank():
        return  # the first process writes
    with contextlib.suppress(OSError):
        write_file(CACHE, json.dumps(_known(), sort_keys=True).encode())


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    """Names that code below ``node`` imports, as ``drgrade.images.crop`` or ``drgrade.images.crop.Crop``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{module}.{alias.name}" for alias in node.names)
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from _imports(child, package)


@cache
def _files(names: Collection[str]) -> tuple[Path, ...]:
    """Files that are executed when these names are imported; none for names outside the package."""
    return tuple(dict.fromkeys(file for name in names for file in _files_of(name)))


@cache
def _files_of(name: str) -> tuple[Path, ...]:
    package, _, _ = name.rpartition(".")
    if not package:
        return ()
    file = _modules().get(name)
    if file is None or _name(file) in LEFT_OUT or _name(file).startswith("params/"):
        return _files_of(package)
    return (*_files_of(package), file)


@cache
def _modules() -> dict[str, Path]:
    """All files of the package by the name of their module, found at once: a look for each takes longer."""
    names = {
        path: ".".join(["drgrade", *Path(_name(path)).with_suffix("").parts])
        for path in PACKAGE.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


@cache
def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


class _WithoutDocstrings(ast.NodeTransformer):
    """Removes string expression statements, that is docstrings; a syntax tree has no comments."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return node
