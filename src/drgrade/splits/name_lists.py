"""Partitions published as bare lists of file names: check them, and re-issue one that leaks.

The lists that CLPI (doi 10.1109/TCYB.2021.3062638) released for Messidor-2 are of this kind: one file name a
line, no header. Their validation and test photographs are all among those of training.

    python -m drgrade.splits.name_lists check train.csv val.csv test.csv
    python -m drgrade.splits.name_lists reissue train.csv val.csv test.csv --seed 1 --out split.csv
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from drgrade.data.labels import stem
from drgrade.errors import UserError
from drgrade.files import sha256, write_file
from drgrade.rng import derive
from drgrade.splits.lists import OTHERS, PARTS
from drgrade.splits.overlaps import SHOWN, straddling

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
DATED = re.compile(r"(?P<day>\d{8})_\d+_(?P<site>\d{4})_PP")
NUMBERED = re.compile(r"IM(\d+)")
APART = 10
"""Photographs whose numbers differ by at most this may show the same patient (mostly they differ by one)."""


def read_names(path: Path) -> list[str]:
    """Read photograph names, without file extension, from a list or from the first column of a CSV.

    Raises:
        UserError: there is no such file, it is not text, or it is empty.
    """
    try:
        lines = [line.split(",")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a list of photographs") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text; save it as UTF-8, a file name a line") from None
    names = [stem(line) for line in lines if line not in ("", OTHERS, "image_id")]
    if not names:
        raise UserError(f"{path}: names no photograph; a file name a line is expected")
    return names


def overlapping(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a sentence for each photograph and each further list it is in; ``lists`` are names by part."""
    rows = [(name, part) for part, names in lists.items() for name in names]
    table = pd.DataFrame(rows, columns=["image_id", "split"], dtype="string")
    nothing = pd.Series(pd.NA, table.index, "string")
    return straddling(table.assign(patient_id=nothing, sha256=nothing, fold=nothing), None)


def check_lists(lists: Mapping[str, Sequence[str]]) -> None:
    """Check that no photograph is in two parts.

    Raises:
        UserError: some are; the message has their number and the first results of :func:`overlapping`.
    """
    pairs = overlapping(lists)
    if pairs:
        more = f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
        raise UserError(
            f"{len(pairs)} overlaps between the lists: {'; '.join(pairs[:SHOWN])}{more}; "
            f"put each photograph into one list"
        )


def examinations(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return site and group of Messidor-2 photographs; both eyes of a patient are always in one group.

    The names do not identify patients. They contain either the day of the examination
    (``YYYYMMDD_<number>_<site>_PP``), and each day is a group; or a running number (``IM<number>``), and a
    group is a run of numbers without a gap of more than APART.

    Raises:
        UserError: a name has neither form.
    """
    found: dict[str, tuple[str, str]] = {}
    numbered: list[tuple[int, str]] = []
    for name in names:
        if dated := DATED.fullmatch(name):
            found[name] = (dated["site"], dated["day"])
        elif number := NUMBERED.fullmatch(name):
            numbered.append((int(number[1]), name))
        else:
            raise UserError(f"{name}: not a name of Messidor-2 (YYYYMMDD_n_site_PP or IMn); leave it out")
    last, run = -APART, 0
    for number_, name in sorted(numbered):
        run = number_ if number_ - last > APART else run
        found[name], last = ("IM", f"IM{run}"), number_
    return found


def reissue(names: Iterable[str], seed: int) -> dict[str, str]:
    """Assign a part to each photograph: 60/20/20 within each site, keeping groups of :func:`examinations`.

    The groups of a site are assigned from the largest to the smallest, equal sizes in an order determined by
    ``seed``; each goes to the part that lacks the most photographs to its share.
    """
    group_of = examinations(names)
    sizes = Counter(group_of.values())
    parts: dict[tuple[str, str], str] = {}
    for site in sorted({site for site, _ in sizes}):
        groups = [group for group in sizes if group[0] == site]
        room = {part: share * sum(sizes[group] for group in groups) for part, share in SHARES.items()}
        for group in sorted(groups, key=lambda group: (-sizes[group], derive(seed, "reissue", *group))):
            part = max(PARTS, key=lambda part: room[part])
            parts[group], room[part] = part, room[part] - sizes[group]
    return {name: parts[group] for name, group in sorted(group_of.items())}


def split_csv(parts: Mapping[str, str]) -> bytes:
    """Return a CSV (image_id, split) for the scheme ``file``; unnamed photographs are left out."""
    lines = ["image_id,split", f"{OTHERS},", *(f"{name},{part}" for name, part in sorted(parts.items()))]
    return ("\n".join(lines) + "\n").encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, see the module docstring; exit with an error line if a list is invalid or leaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["check", "reissue"])
    parser.add_argument("lists", type=Path, nargs="+", help="for check: train, val and test")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        lists = [read_names(path) for path in options.lists]
        if options.what == "check":
            if len(lists) != len(PARTS):
                parser.error("check needs three lists: train, val and test")
            named = dict(zip(PARTS, lists, strict=True))
            print(*overlapping(named), sep="\n")
            check_lists(named)
            return
        if options.out is None:
            parser.error("reissue needs --out")
        parts = reissue({name for names in lists for name in names}, options.seed)
        write_file(options.out, split_csv(parts))
        group_of, counts = examinations(parts), Counter(parts.values())
        for site, size in sorted(Counter(site for site, _ in group_of.values()).items()):
            groups = {group for group in group_of.values() if group[0] == site}
            print(f"site {site}: {size} photographs in {len(groups)} groups")
        print(*(f"{part} {counts[part]}" for part in PARTS), f"sha256 {sha256(options.out)}")
    except UserError as error:
        sys.exit(f"drgrade: error: {error}")


if __name__ == "__main__":
    main()
