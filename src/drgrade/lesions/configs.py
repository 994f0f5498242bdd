"""Find and hash the MMDetection configs in ``workflow/detectors`` without importing MMDetection."""

import ast
import hashlib
from pathlib import Path

from drgrade.errors import UserError

FOLDER = Path("workflow/detectors")


def config_file(name: str) -> Path:
    """Return the path of config ``name`` in ``workflow/detectors``.

    The working directory is searched first, then the repository.

    Raises:
        UserError: there is no such config; the message lists the available ones.
    """
    folders = [FOLDER, Path(__file__).parents[3] / FOLDER]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    there = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    raise UserError(f"detector.config: no {name!r} in {FOLDER}; there is {', '.join(there) or 'nothing'}")


def config_digest(name: str) -> str:
    """SHA-256 of a config and of its base configs, ignoring comments."""
    return hashlib.sha256("\n".join(map(ast.dump, _trees(config_file(name)))).encode()).hexdigest()


def backbones(name: str) -> list[str]:
    """Names of timm networks that a config or one of its base configs sets for its backbone."""
    found = set()
    for tree in _trees(config_file(name)):
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "name" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
    return sorted(found)


def backbone(name: str) -> str | None:
    """Name of the timm network used as a config's backbone; None for MMDetection's own backbones."""
    from mmengine.config import Config

    found = Config.fromfile(config_file(name)).model.backbone
    return str(found.name) if found.type == "TimmBackbone" else None


def _trees(file: Path) -> list[ast.Module]:
    """Parse a config and its base configs (``_base_``); bases from installed packages are left out."""
    tree = ast.parse(file.read_bytes())
    bases: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            value = ast.literal_eval(node.value)
            bases += [value] if isinstance(value, str) else value
    inside = [file.parent / base for base in bases if "::" not in base]
    return [tree, *(other for base in inside for other in _trees(base))]
