import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image
from tests.images.test_read import eye

from drgrade.export.mlflow_model import example, write_mlflow
from drgrade.export.portable import write_portable
from drgrade.predict.model import Model


@pytest.fixture
def exported(results, tmp_path):
    """An MLflow model, and the model that it serves."""
    model = Model.load(results)
    write_portable(results, list(model.members), model.fit, model.params, tmp_path / "drgrade")
    write_mlflow(tmp_path / "drgrade", tmp_path / "mlflow")
    return tmp_path / "mlflow", model


def photograph(brightness: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((eye(160, 120, 55) * brightness).astype("uint8")).save(buffer, "JPEG")
    return buffer.getvalue()


def test_it_grades_as_the_model_does_and_says_what_it_needs(exported):
    import mlflow.pyfunc

    folder, model = exported
    served = mlflow.pyfunc.load_model(str(folder))
    request = example()
    found = served.predict(request)
    expected = model.grade_images(list(request["image"]), list(request["name"])).table
    assert expected["status"].tolist() == ["ok"]
    assert found["eye"].tolist() == ["left"]
    assert found["score"].tolist() == expected["score"].tolist()
    assert found["referable"].tolist() == [None]
    nameless = served.predict(request[["image"]])
    assert nameless["file"].tolist() == ["image 0"]
    assert list(served.metadata.signature.outputs.input_names()) == list(expected)
    needs = (folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in needs] == ["mlflow", "drgrade"]
    assert not (folder / "uv.lock").exists()


@pytest.fixture
def server(exported, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy would look for the server on its own machine
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(exported[0]),
               "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    environment = os.environ | {
        "MLFLOW_MODELS_WORKERS": "1", "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }  # fmt: skip
    with (exported[0].parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (exported[0].parent / "server.log").read_text()
                time.sleep(0.1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # it starts processes of its own
        process.wait(timeout=30)


def test_a_server_answers_requests(server, exported):
    images = [photograph(1.0), b"no photograph", photograph(0.6)]
    rows = [[base64.b64encode(image).decode()] for image in images]
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()
    request = urllib.request.Request(f"{server}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.loads(answer.read())["predictions"]
    expected = exported[1].grade_images(images).table
    assert [row["status"] for row in found] == ["ok", "failed", "ok"]
    assert [row["score"] for row in found][::2] == pytest.approx(expected["score"][::2].tolist(), rel=1e-6)
    assert found[0]["score"] != found[2]["score"]
    assert found[1]["grade"] is None
    assert found[1]["reason"] == "not an image"
    assert list(found[0]) == list(expected)
