"""The client against stub servers that answer as TensorFlow Serving does; behind them runs the real export."""

import base64
import io
import json
import socket
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tensorflow as tf

from tfdet import client
from tfdet.__main__ import main
from tfdet.errors import DataError, ServerError
from tfdet.inference import Detections


@pytest.fixture(scope="module")
def serve(exported):
    """string [B] of encoded images -> detections."""
    model = tf.saved_model.load(exported / "1")
    return lambda image_bytes: model.signatures["serving_default"](tf.constant(image_bytes))


@pytest.fixture(scope="module")
def rest(serve):
    """The URL of a server with TF Serving's REST API, the model "tfdet", and others that go wrong."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            model, _, method = self.path.removeprefix("/v1/models/").partition(":")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if model == "gateway":
                return self.answer(502, b"<html>\nbad gateway</html>")
            if model == "number":
                return self.answer(200, b'{"predictions": [0.5]}')
            if (model, method) != ("tfdet", "predict"):
                return self.answer(
                    404, json.dumps({"error": f"Servable not found for request: Latest({model})"}).encode()
                )
            found = serve([base64.b64decode(instance["b64"]) for instance in body["instances"]])
            rows = [
                {key: value[i].numpy().tolist() for key, value in found.items()} for i in range(len(body["instances"]))
            ]
            self.answer(200, json.dumps({"predictions": rows}, indent=4).encode())

        def answer(self, status, content):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def grpc_server(serve):
    """The address of a server of TF Serving's own PredictionService, the model "tfdet", and "other" without boxes."""
    pytest.importorskip("tensorflow_serving.apis", reason="the extra `serving` is not installed")
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            name = request.model_spec.name
            if name not in ("tfdet", "other"):
                context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
            assert request.model_spec.signature_name == "serving_default"
            found = serve(tf.make_ndarray(request.inputs["image_bytes"]))
            response = predict_pb2.PredictResponse(model_spec=request.model_spec)
            for key, value in found.items():
                if name == "tfdet" or key != "boxes":
                    response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
            return response

    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(params=["rest", "gRPC"])
def address(request):
    """Flags that lead to the model."""
    if request.param == "rest":
        return ["--url", f"{request.getfixturevalue('rest')}/tfdet"]
    return ["--grpc", request.getfixturevalue("grpc_server"), "--model-name", "tfdet"]


@pytest.fixture
def free_port():
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def photos(tmp_path, draw_image):
    (tmp_path / "a.jpg").write_bytes(draw_image(150, 90, [(10, 20, 60, 70)], [0], "JPEG"))
    (tmp_path / "b.png").write_bytes(draw_image(60, 160, [(80, 10, 120, 50)], [1]))
    return [tmp_path / "a.jpg", tmp_path / "b.png"]


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["client", *map(str, args)])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("tfdet: error: ")
    assert line.count("\n") == 1
    return line


def same(one, other):
    """Are they the same detection, to 1e-4? Boxes in units of the larger image, 160 pixels."""
    near = (
        np.allclose(one["bbox"], other["bbox"], rtol=0, atol=1e-4 * 160) and abs(one["score"] - other["score"]) < 1e-4
    )
    return near and all(one[key] == other[key] for key in ("image_id", "category_id"))


def test_it_writes_what_predict_writes(untrained, exported, address, photos, tmp_path):
    names = exported / "1" / "assets.extra" / "class_names.txt"
    main(["client", *map(str, photos), *address, "--class-names", str(names), "-o", str(tmp_path / "served")])
    main(
        ["predict", *map(str, photos), "--model", str(untrained[1]), "-o", str(tmp_path / "here"), "--batch-size", "1"]
    )
    served, here = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("served", "here"))
    assert served["images"] == here["images"]
    assert served["categories"] == here["categories"]
    # An untrained detector finds much of nearly one score, and rounding may change what comes first and last.
    best = [one for i in (1, 2) for one in [one for one in here["annotations"] if one["image_id"] == i][:50]]
    assert len(best) == 100
    for one in best:
        assert any(same(one, other) for other in served["annotations"])
    assert {path.name for path in (tmp_path / "served").iterdir()} == {"a.jpg", "b.jpg", "detections.json"}


def test_without_the_names_labels_are_numbers(rest, photos, tmp_path):
    main(["client", str(photos[0]), "--url", f"{rest}/tfdet", "-o", str(tmp_path / "found")])
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [category["name"] for category in found["categories"]] == ["0", "1"]


def test_a_broken_image_is_one_line(address, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:1000])
    line = fails(capsys, photos[0], broken, *address, "-o", tmp_path / "found")
    assert line == f"tfdet: error: {broken}: not an image that the server can read\n"
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("other", "HTTP 404: Servable not found for request: Latest(other)"),
        ("gateway", "HTTP 502: <html> bad gateway</html>"),
        ("number", "the answer is not that of a detector"),
    ],
)
def test_what_a_rest_server_refuses_is_one_line(rest, photos, capsys, model, message):
    assert f"{rest}/{model}: {message}" in fails(capsys, photos[0], "--url", f"{rest}/{model}")


def test_what_a_grpc_server_refuses_is_one_line(grpc_server, photos, capsys):
    flags = ["--grpc", grpc_server, "--model-name"]
    assert f"{grpc_server}: NOT_FOUND: Servable not found" in fails(capsys, photos[0], *flags, "nothing")
    assert "the answer is not that of a detector" in fails(capsys, photos[0], *flags, "other")


def test_no_server_is_one_line(photos, capsys, free_port):
    assert "Connection refused" in fails(capsys, photos[0], "--url", f"http://127.0.0.1:{free_port}/v1/models/tfdet")
    assert "unknown url type" in fails(capsys, photos[0], "--url", "localhost")
    pytest.importorskip("tensorflow_serving.apis", reason="the extra `serving` is not installed")
    assert "UNAVAILABLE" in fails(capsys, photos[0], "--grpc", f"127.0.0.1:{free_port}")


def test_a_server_that_says_nothing(photos):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ask = client.over_rest(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/models/tfdet", timeout=0.1)
        with pytest.raises(ServerError, match="timed out"):
            client.detect(ask, photos[0])


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"no\.jpg: No such file"):
        client.detect(client.over_rest("http://localhost"), tmp_path / "no.jpg")


def test_the_missing_extra_is_named(photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    assert "pip install 'tfdet[serving]'" in fails(capsys, photos[0], "--grpc", "localhost:8500")


def test_wrong_settings_are_one_line(rest, photos, tmp_path, capsys):
    assert "either --url or --grpc" in fails(capsys, photos[0])
    assert "either --url or --grpc" in fails(capsys, photos[0], "--url", "http://x", "--grpc", "x:8500")
    names = tmp_path / "names.txt"
    url = ["--url", f"{rest}/tfdet", "--class-names", names]
    assert "names.txt" in fails(capsys, photos[0], *url)
    names.write_text("red\n")
    assert "1 names, but the server found label 1" in fails(capsys, photos[0], *url)


def test_keypoints_come_with_the_rest(photos, monkeypatch):
    row = {"boxes": [[0, 0, 5, 5], [0] * 4], "scores": [0.5, 0], "labels": [0, -1], "num_detections": 1}
    joints = {"keypoints": [[[1, 2], [3, 4]]] * 2, "keypoint_scores": [[0.5, 0.25]] * 2}
    for added in ({}, joints):
        answer = json.dumps({"predictions": [row | added]}).encode()
        monkeypatch.setattr(client.urllib.request, "urlopen", lambda *_, answer=answer, **__: io.BytesIO(answer))
        found = client.detect(client.over_rest("http://server/v1/models/m"), photos[0])
        assert found.boxes.tolist() == [[0, 0, 5, 5]]
        assert (found.keypoints is None) == (found.keypoint_scores is None) == (not added)
    assert found.keypoints.tolist() == [[[1, 2], [3, 4]]] and found.keypoint_scores.tolist() == [[0.5, 0.25]]


def test_names_of_keypoints(photos, tmp_path, monkeypatch, capsys):
    one = Detections("a", np.float32([(0, 0, 50, 50)]), np.float32([0.9]), np.int32([0]))
    one = one._replace(keypoints=np.float32([[(10, 20), (30, 40)]]), keypoint_scores=np.float32([[0.5, 0]]))
    monkeypatch.setattr(client, "detect", lambda ask, file: one)
    names = tmp_path / "names.txt"
    for given, written in (("nose\nleft_eye\n", ["nose", "left_eye"]), (None, ["0", "1"])):
        names.write_text(given or "")
        flags = ["--keypoint-names", str(names)] if given else []
        main(["client", str(photos[0]), "--url", "http://server", "-o", str(tmp_path / "found"), *flags])
        found = json.loads((tmp_path / "found" / "detections.json").read_text())
        assert found["categories"][0]["keypoints"] == written
        assert found["categories"][0]["skeleton"] == ([[1, 2]] if given else [])
        assert found["annotations"][0]["keypoints"] == [10, 20, 2, 30, 40, 1]
    names.write_text("nose\n")
    line = fails(capsys, photos[0], "--url", "http://server", "--keypoint-names", names)
    assert "1 names, but the server found 2 keypoints" in line
