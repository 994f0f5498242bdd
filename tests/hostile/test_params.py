"""Mutated params files, and YAML that is made to fill the memory or to run code."""

import json
import random
from functools import partial
from pathlib import Path

import pytest
from tests.hostile.child import one_line, survive
from tests.hostile.mutations import mutated

from drgrade import params
from drgrade.errors import UserError

FILES = [
    b"crop: {size: 256, rule: disc}\nroles: {grade: demo, external: [demo_site]}\n",
    b"datasets:\n  demo: {}\n  demo_site: {limit: 20}\nindex:\n  val_fraction: 0.1\n  seed: 3\n",
    b"pretrain:\n  simclr:\n    epochs: 2\nexperiments:\n  one: {start: imagenet, seeds: [0, 1]}\n"
    b"explanations:\n  cam: {experiment: one}\n",
]
TOKENS = (b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.system [x] ", b"!!set ", b"!!map ", b"!!int ",
          b"!!timestamp ", b"!!binary ", b"!!bool ", b"!x ", b"? ", b"- ", b"[", b"{", b"}", b": ", b"|\n",
          b"\t", b"\0", b"2026-13-45", b"1:99:99", b".nan", b".inf", b"-1", b"null", b"1e400", b"9" * 5000,
          b"[" * 2000, b"#", b"'", b"%YAML 9.9\n", b"---\n", b"\xe9", b"\xe2\x80\xa8", b"\\n")  # fmt: skip


def mutant(number: int) -> bytes:
    rng = random.Random(number)
    return mutated(rng.choice(FILES), FILES, rng, tokens=TOKENS)


def look(folder: Path, data: bytes) -> str:
    file = folder / "params.yaml"
    file.write_bytes(data)
    try:
        loaded = params.load(file)
    except UserError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"{file}: ")
            one_line(line, 20_000)
        return "refused"
    json.dumps(loaded.model_dump(), allow_nan=False)
    return "read"


def test_mutated_params_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    assert {look(tmp_path, data) for data in FILES} == {"read"}
    outcomes = survive(mutant, partial(look, tmp_path), 600, tmp_path)
    assert outcomes.total() == 600
    assert outcomes["read"] > 0, outcomes  # few: most mutations make an unknown key


def laughs(levels: int) -> bytes:
    """Nine aliases of nine aliases, and so on."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines).encode()


def merges(levels: int) -> bytes:
    """The same by merged keys."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines).encode()


HOSTILE = {
    "laughs": (laughs(30), "more than 1000000 characters with its aliases written out"),
    "merges": (merges(30), "more than 1000000 characters with its aliases written out"),
    "itself": (b"crop: &a {size: *a}", "line 1: contains itself, by an alias"),
    "code": (b"a: !!python/object/apply:os.system [touch ran]", "not YAML (could not determine a con"),
    "deep": (b"[" * 5000, "nested too deeply"),
    "date": (b"crop: {size: 2026-13-45}", "a value is not what it seems to be (month must be in 1..12)"),
    "digits": (b"seed: " + b"9" * 5000, "a value is not what it seems to be (Exceeds the limit"),
    "tag": (b"crop: !!map x", "not YAML (expected a mapping node"),
    "keys": (b"".join(b"k%d: 1\n" % n for n in range(5000)), "k0: no such key"),
    "twice": (b"{crop: {}, crop: {}}", "key 'crop' stands twice, in lines 1 and 1"),
    "long": (b"crop: {rule: " + b"x" * 100_000 + b"}", "crop.rule: input should be"),
    "line break": (b'"a\\nb": 1', "a b: no such key"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_yaml_that_is_made_to_harm_is_refused(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, reason = HOSTILE[name]
    file = Path("params.yaml")
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        params.load(file)
    one_line(str(error.value), 600)
    assert str(error.value).removeprefix("params.yaml: ").startswith(reason)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name", ["a b", "a;b", "$(x)", "../a", "a'b", "-a", "A", "a\n", "", "é", "a.b", "{a}"]
)
@pytest.mark.parametrize("block", ["datasets", "experiments", "pretrain", "features", "explanations"])
def test_names_that_become_folders_and_arguments_have_no_odd_characters(block: str, name: str) -> None:
    """So the rules of Snakemake need not quote them."""
    with pytest.raises(UserError):
        params.check({block: {name: {}}}, "params.yaml")
