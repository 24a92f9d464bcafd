"""A client for an export that TensorFlow Serving serves, over REST (standard library) or gRPC (extra `serving`).

    ask = over_rest("http://localhost:8501/v1/models/tfdet")   or   over_grpc("localhost:8500", "tfdet")
    detect(ask, "photo.jpg") -> Detections

One request an image: what cannot be read fails for itself alone, and the server makes batches of everybody's requests.
"""

import base64
import contextlib
import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdet.errors import DataError, ServerError, TfdetError
from tfdet.inference import Detections

TYPES = {"boxes": np.float32, "scores": np.float32, "labels": np.int32, "num_detections": np.int32}
KEYPOINTS = {"keypoints": np.float32, "keypoint_scores": np.float32}  # of a detector that finds them


def detect(ask, path):
    """Detections in one image file, whose path is the image_id.

    Args:
        ask: from `over_rest` or `over_grpc`.
    Raises:
        DataError: there is no such file, or the server cannot decode it.
        ServerError: the server cannot be reached, refuses, or answers something else.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    found = ask(encoded)
    if found["num_detections"] < 0:
        raise DataError(f"{path}: not an image that the server can read")
    return Detections.from_padded(str(path), found)


def over_rest(url, timeout=60.0):
    """A function from an encoded image to its padded detections, {"boxes" [K, 4], ...}, by TF Serving's REST API.

    Args:
        url: of the model, http://HOST:8501/v1/models/NAME, with /versions/NUMBER behind it if it is to be that one.
        timeout: seconds that the server may be silent.
    """

    def ask(encoded):
        body = json.dumps({"instances": [{"b64": base64.b64encode(encoded).decode()}]}).encode()
        try:
            request = urllib.request.Request(f"{url}:predict", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"{url}: HTTP {error.code}: {_refusal(error.read())}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerError(f"{url}: no answer: {_one_line(getattr(error, 'reason', error))}") from error
        try:
            (found,) = json.loads(answer)["predictions"]
            return {key: np.array(found[key], dtype) for key, dtype in _expected(found).items()}
        except (ValueError, TypeError, KeyError) as error:
            raise ServerError(f"{url}: the answer is not that of a detector that tfdet exported") from error

    return ask


def over_grpc(address, model_name, timeout=60.0):
    """The same by TF Serving's gRPC API.

    Args:
        address: of the server, HOST:8500.
        timeout: seconds for one answer.
    """
    try:
        import grpc
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        raise TfdetError(f"gRPC needs the extra `serving`, pip install 'tfdet[serving]': {error}") from error
    predict = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address)).Predict

    def ask(encoded):
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model_name, "serving_default"
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([encoded]))
        try:
            outputs = predict(request, timeout).outputs
        except grpc.RpcError as error:
            raise ServerError(f"{address}: {error.code().name}: {_one_line(error.details())}") from error
        if not set(TYPES) <= set(outputs):
            raise ServerError(f"{address}: the answer is not that of a detector that tfdet exported")
        return {key: tf.make_ndarray(outputs[key])[0] for key in _expected(outputs)}

    return ask


def _expected(found):
    return TYPES | (KEYPOINTS if set(KEYPOINTS) <= set(found) else {})


def _refusal(body):
    """What TF Serving says in the body of an HTTP error, {"error": "..."}; of another server, the body itself."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = json.loads(text)["error"]
    return _one_line(text)


def _one_line(text):
    return " ".join(str(text).split())[:300]
