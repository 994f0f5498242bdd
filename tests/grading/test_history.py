"""history.csv: what each epoch reported, the same whether or not the training was interrupted."""

import math

import pandas as pd
import pytest

from drgrade.grading.cost import Meter
from drgrade.grading.finetune import Params
from drgrade.grading.history import HISTORY, History
from drgrade.grading.majority import Params as Majority
from drgrade.grading.stage import Inputs, grade
from drgrade.params import Crop
from drgrade.tracking import NullRun, Run

SMALL = {"encoder": "test_efficientnet", "start": "random", "input_size": 32, "epochs": 3, "batch_size": 4}


def written(history, tmp_path):
    history.write(tmp_path / HISTORY)
    return (tmp_path / HISTORY).read_text()


def test_what_differs_from_run_to_run_is_left_out(tmp_path):
    history = History(tmp_path / "kept")
    history.add(2, {"loss": 1 / 3, "val_qwk": math.nan})
    history.add(1, {"loss": 0.5, "lr": 1e-4, "images_per_s": 9.0, "restoration_peak_memory_gb": 1.0})
    assert written(history, tmp_path) == "epoch,loss,lr,val_qwk\n1,0.5,0.0001,\n2,0.333333,,\n"


def test_phases_share_the_rows_and_a_repeated_epoch_counts_once(tmp_path):
    history = History(tmp_path / "kept")
    for values in ({"grading_loss": 2.0}, {"grading_loss": 3.0}, {"loss": 1.0}):
        history.add(1, values)
    assert written(history, tmp_path) == "epoch,grading_loss,loss\n1,3,1\n"


def test_kept_epochs_come_back_exactly(tmp_path):
    first = History(tmp_path / "folder/kept")
    first.add(1, {"loss": 0.1 + 0.2, "val_qwk": math.nan})
    first.keep()
    again = History(first.kept).epochs[1]
    assert again["loss"] == first.epochs[1]["loss"]
    assert math.isnan(again["val_qwk"])


def test_metrics_of_no_epoch_are_not_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logged = []
    monkeypatch.setattr(NullRun, "metrics", lambda self, values, step: logged.append((values, step)))
    meter = Meter(NullRun(), "name", "key")
    meter.metrics({"val_qwk": 0.5})
    meter.metrics({"loss": 0.5}, step=0)
    assert meter.history.epochs == {1: {"loss": 0.5}}
    assert logged == [({"val_qwk": 0.5}, 0), ({"loss": 0.5}, 0)]


def test_a_resumed_training_has_the_history_of_an_uninterrupted_one(dataset, tmp_path, monkeypatch):
    data = dataset("own")

    def train(out):
        grade("net", Params(**SMALL), Crop(), Inputs(data), seed=0, fold=None, out=tmp_path / out)
        return (tmp_path / out / HISTORY).read_text()

    whole = train("whole")
    table = pd.read_csv(tmp_path / "whole" / HISTORY)
    assert table["epoch"].tolist() == [1, 2, 3]
    assert {"loss", "lr", "val_qwk"} < set(table.columns)
    assert table["loss"].is_unique

    def stop(self, values, step=0):
        if step == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "metrics", stop)
        with pytest.raises(InterruptedError):
            train("resumed")
    assert train("resumed") == whole


def test_a_grader_without_epochs_writes_a_header(dataset, tmp_path):
    grade("vote", Majority(), Crop(), Inputs(dataset("own")), seed=0, fold=None, out=tmp_path / "vote")
    assert (tmp_path / "vote" / HISTORY).read_text() == "epoch\n"
