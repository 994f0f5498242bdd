"""The detectors of ``workflow/detectors``: configs of MMDetection, found and compared without it."""

import ast
import hashlib
from pathlib import Path

from drgrade.errors import UserError

FOLDER = Path("workflow/detectors")


def config_file(name: str) -> Path:
    """The leaf config ``name`` in ``workflow/detectors`` of the working directory or of the repository.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    folders = [FOLDER, Path(__file__).parents[3] / FOLDER]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    there = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    raise UserError(f"detector.config: no {name!r} in {FOLDER}; there is {', '.join(there) or 'nothing'}")


def config_digest(name: str) -> str:
    """SHA-256 of a leaf config and of what it builds on, without comments."""
    return hashlib.sha256("\n".join(map(ast.dump, _trees(config_file(name)))).encode()).hexdigest()


def backbones(name: str) -> list[str]:
    """Names of timm networks that a leaf config, or one it builds on, gives its backbone."""
    found = set()
    for tree in _trees(config_file(name)):
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "name" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
    return sorted(found)


def backbone(name: str) -> str | None:
    """The timm network that is a leaf config's backbone; None where MMDetection has its own."""
    from mmengine.config import Config

    found = Config.fromfile(config_file(name)).model.backbone
    return str(found.name) if found.type == "TimmBackbone" else None


def _trees(file: Path) -> list[ast.Module]:
    """A config and those it builds on (``_base_``), parsed; those of installed packages are left out."""
    tree = ast.parse(file.read_bytes())
    bases: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            value = ast.literal_eval(node.value)
            bases += [value] if isinstance(value, str) else value
    inside = [file.parent / base for base in bases if "::" not in base]
    return [tree, *(other for base in inside for other in _trees(base))]
