"""Weights that a user pins."""

import hashlib
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from drgrade.checkpoints import read_tensors
from drgrade.data.archives import unpack
from drgrade.errors import UserError
from drgrade.pins import check_pin


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "my net.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    return path


@pytest.mark.parametrize("option", ["--text", "--binary"])
def test_a_list_of_sha256sum_pins_the_file(weights, option):
    command = ["sha256sum", option, weights.name]
    listed = weights.with_name("SHA256SUMS")
    listed.write_bytes(subprocess.run(command, cwd=weights.parent, check=True, capture_output=True).stdout)
    assert read_tensors(weights)["weight"].tolist() == [1, 1, 1]
    save_file({"weight": torch.zeros(3)}, weights)
    with pytest.raises(UserError, match=r"my net\.safetensors: its SHA-256 is .*SHA256SUMS says"):
        read_tensors(weights)


def test_files_that_are_not_listed_are_not_pinned(weights):
    check_pin(weights)
    weights.with_name("SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  other.pth\n\n")
    check_pin(weights)


def test_an_archive_that_is_not_the_pinned_one_is_not_unpacked(tmp_path):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("1.png", b"")
    archive.with_name("SHA256SUMS").write_text(f"{'0' * 64}  images.zip\n")
    with pytest.raises(UserError, match=r"images\.zip: its SHA-256 is"):
        unpack(archive, tmp_path / "images")
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("content", [b"one_word\n", b"\xff\xfe\x00"])
def test_a_broken_list_is_named(weights, content):
    weights.with_name("SHA256SUMS").write_bytes(content)
    with pytest.raises(UserError, match="SHA256SUMS: not a list of digests; write it with sha256sum"):
        check_pin(weights)
