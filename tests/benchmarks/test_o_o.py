"""The benchmark of o_O's networks: its baseline is the published network, and it prints what it promises."""

import json
import subprocess

import pytest
import torch
from benchmarks import o_o
from tests.pipeline.fork_server import PYTHON

PUBLISHED = {  # parameters with the head, from the published layouts
    "o_o_128_5x5": 1_808_481, "o_o_128_4x4": 2_804_577, "o_o_256_5x5": 4_601_057,
    "o_o_256_4x4": 7_415_009, "o_o_512_5x5": 12_402_657, "o_o_512_4x4": 12_465_121,
}  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_stock_networks_have_the_published_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        stock = o_o.stock_network(name)
    assert sum(weight.numel() for weight in stock.parameters()) == parameters
    assert list(PUBLISHED) == o_o.NETWORKS


def test_stock_network_computes_the_same_until_a_weight_changes() -> None:
    network, stock = (
        o_o.Case("o_o_128_4x4", toy=True).network().eval(),
        o_o.stock_network("o_o_128_4x4").eval(),
    )
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    o_o.copy_weights(network, stock)
    assert max(o_o.unlike(network, stock, images, images[..., 8:-8, 8:-8]).values()) < 1e-9
    with torch.no_grad():
        stock[0].weight[3, 1, 2, 2] += 0.1
    found = o_o.unlike(network, stock, images, images[..., 8:-8, 8:-8])
    assert found.pop("inputs") == 0
    assert min(found.values()) > 1e-6


def test_a_baseline_that_computes_something_else_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(o_o, "copy_weights", lambda network, stock: None)
    with pytest.raises(SystemExit, match="o_o_128_5x5: scores differ by"):
        o_o.Stock(o_o.Case("o_o_128_5x5", toy=True))


def test_operations_are_those_of_the_convolutions_and_layers() -> None:
    layers = [  # side of the output map, channels in and out, kernel
        (56, 3, 32, 5), (56, 32, 32, 3), (14, 32, 64, 5), (14, 64, 64, 3), (14, 64, 64, 3),
        (6, 64, 128, 3), (6, 128, 128, 3), (6, 128, 128, 3),
    ]  # fmt: skip
    each = [2 * side**2 * wide * out * kernel**2 for side, wide, out, kernel in layers]
    head = 2 * (512 * 1024 + 512 * 1024 + 512)
    # backward: as much again for the weights and for the inputs, of which images need no gradient
    assert o_o.operations("o_o_128_5x5") == (3 * (sum(each) + head) - each[0], sum(each))


def test_hours_of_the_published_solution_count_every_image() -> None:
    rates = {name: {"step": 2.0, "features": 4.0} for name in o_o.NETWORKS}
    spent = o_o.hours(rates)
    assert spent["training"] * 3600 * 2 == pytest.approx(31_612 * 2 * (201 + 201 + 251))
    assert spent["features"] * 3600 * 4 == pytest.approx(88_702 * 50 * 6)  # 26.6 million passes


def test_toy_run_prints_the_result() -> None:
    command = [*PYTHON, o_o.__file__, "--toy", "--only", "o_o_128_5x5"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) >= {"name", "value", "unit", "baseline", "ratio", "target", "holds"}
    assert result["name"] == "o_o"
    assert result["hours"] is None  # which need all six networks
    assert list(result["parts"]) == ["o_o_128_5x5"]
    for task in o_o.TASKS:
        assert min(result["parts"]["o_o_128_5x5"][task].values()) > 0
