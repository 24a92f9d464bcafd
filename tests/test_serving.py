import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfdet import serving
from tfdet.data.images import load_image


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(exported / "1")


def test_the_folder_is_what_tf_serving_looks_for(exported):
    assert {path.name for path in exported.iterdir()} == {"1"}
    assert (exported / "1" / "saved_model.pb").is_file()
    assert (exported / "1" / "variables" / "variables.index").is_file()
    assert (exported / "1" / "assets.extra" / "class_names.txt").read_text(encoding="utf-8") == "red\nblue\n"


@pytest.mark.parametrize(
    ("name", "argument", "spec"),
    [
        ("serving_default", "image_bytes", tf.TensorSpec([None], tf.string)),
        ("images", "images", tf.TensorSpec([None, None, None, 3], tf.uint8)),
    ],
)
def test_signatures(loaded, name, argument, spec):
    assert {"serving_default", "images"} <= set(loaded.signatures)
    signature = loaded.signatures[name]
    _, inputs = signature.structured_input_signature
    assert {key: (value.shape.as_list(), value.dtype) for key, value in inputs.items()} == {
        argument: (spec.shape.as_list(), spec.dtype)
    }
    assert {key: value.dtype for key, value in signature.structured_outputs.items()} == {
        "boxes": tf.float32,
        "scores": tf.float32,
        "labels": tf.int32,
        "num_detections": tf.int32,
    }


def test_batches_of_any_size(loaded, draw_image):
    pictures = [draw_image(90, 140, [(5, 5, 60, 60)], [0]), draw_image(120, 70, [], [], "JPEG")]
    for size in (0, 1, 2):
        encoded, images = tf.constant(pictures[:size], tf.string), tf.zeros([size, 50, 60, 3], tf.uint8)
        for name, batch in {"serving_default": encoded, "images": images}.items():
            found = loaded.signatures[name](batch)
            kept = found["scores"].shape[1]
            shapes = {key: tuple(value.shape) for key, value in found.items()}
            expected = {"boxes": (size, kept, 4), "scores": (size, kept), "labels": (size, kept)}
            assert shapes == expected | {"num_detections": (size,)}


@pytest.fixture(scope="module")
def mixed(draw_image):
    """Encoded images, with what cannot be decoded between them, and the indices of the latter."""
    jpeg = draw_image(150, 90, [(10, 20, 60, 70)], [0], "JPEG")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # to be turned by 90 degrees
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + jpeg[2:]
    png = draw_image(60, 160, [(80, 10, 120, 50), (5, 5, 30, 50)], [1, 0])
    return [b"no image", jpeg, b"", png[:600], png, jpeg[:600], turned], [0, 2, 3, 5]


def test_broken_bytes_do_not_disturb_the_images_beside_them(loaded, mixed):
    batch, broken = mixed
    found = {key: value.numpy() for key, value in loaded.signatures["serving_default"](tf.constant(batch)).items()}
    assert np.flatnonzero(found["num_detections"] == -1).tolist() == broken
    for key, padding in {"boxes": 0, "scores": 0, "labels": -1}.items():
        assert (found[key][broken] == padding).all()
    whole = np.setdiff1d(range(len(batch)), broken)
    alone = loaded.signatures["serving_default"](tf.constant([batch[i] for i in whole]))
    for i, k in enumerate(whole):
        assert_same_best(
            {key: value[k] for key, value in found.items()}, {key: value[i] for key, value in alone.items()}
        )


def assert_same_best(found, expected):
    """The best 50 expected detections of an image are among those found, equal to 1e-4 (boxes: of 160 pixels).

    An untrained detector finds so many of nearly one score that rounding may change their order.
    """
    assert found["num_detections"] > 50
    found, expected = ({key: np.asarray(value) for key, value in one.items()} for one in (found, expected))
    for box, score, label in zip(*(expected[key][:50] for key in ("boxes", "scores", "labels")), strict=True):
        same = (found["labels"] == label) & (np.abs(found["scores"] - score) < 1e-4)
        assert (same & (np.abs(found["boxes"] - box).max(axis=-1) < 1e-4 * 160)).any()


def test_the_c_api_finds_what_predict_finds(exported, untrained, mixed, tmp_path):
    """Without Python: the loader and the kernels that TensorFlow Serving uses, from a program in C."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    library = tf.sysconfig.get_lib()
    libraries = [f"-L{library}", f"-Wl,-rpath,{library}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    source, program = Path(__file__).with_name("serving_client.c"), tmp_path / "serving_client"
    build = [compiler, "-Wall", "-Werror", f"-I{tf.sysconfig.get_include()}", source, "-o", program, *libraries]
    subprocess.run(build, check=True)

    saved_model = saved_model_pb2.SavedModel.FromString((exported / "1" / "saved_model.pb").read_bytes())
    signature = saved_model.meta_graphs[0].signature_def["serving_default"]
    names = [signature.inputs["image_bytes"].name]
    names += [signature.outputs[key].name for key in ("boxes", "scores", "labels", "num_detections")]
    batch, broken = mixed
    files = [tmp_path / f"{i}" for i in range(len(batch))]
    for file, encoded in zip(files, batch, strict=True):
        file.write_bytes(encoded)
    command = [program, exported / "1", *names, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]

    counts = [int(count) for count in re.findall(r"^image (.*)$", result.stdout, re.MULTILINE)]
    assert [i for i, count in enumerate(counts) if count == -1] == broken
    for i, text in enumerate(re.split(r"^image .*\n", result.stdout, flags=re.MULTILINE)[1:]):
        if i not in broken:
            rows = np.array([line.split() for line in text.splitlines()], np.float32)
            found = {"labels": rows[:, 0], "scores": rows[:, 1], "boxes": rows[:, 2:], "num_detections": counts[i]}
            predicted = untrained[0].predict(load_image(batch[i])[None], verbose=0)
            assert_same_best(found, {key: value[0] for key, value in predicted.items()})


def warm_up(exported):
    return [one.numpy() for one in tf.data.TFRecordDataset(f"{exported}/1/assets.extra/tf_serving_warmup_requests")]


def test_warm_up_requests_have_the_bytes_of_the_format(exported):
    jpeg = tf.io.encode_jpeg(tf.zeros([32, 32, 3], tf.uint8)).numpy()
    tensor = tf.make_tensor_proto([jpeg]).SerializeToString()
    tensor_size = bytes([len(tensor) & 127 | 128, len(tensor) >> 7])
    entry = b"\x0a\x0bimage_bytes" + b"\x12" + tensor_size + tensor
    entry_size = bytes([len(entry) & 127 | 128, len(entry) >> 7])
    assert b"\x0a\x11\x1a\x0fserving_default\x12" + entry_size + entry in warm_up(exported)[0]


def test_warm_up_requests_are_what_the_signatures_take(exported, loaded):
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason="no extra `serving`")
    requests = [apis.PredictionLog.FromString(record).predict_log.request for record in warm_up(exported)]
    batches = []
    for request in requests:
        signature = request.model_spec.signature_name
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        found = loaded.signatures[signature](**inputs)
        assert (found["num_detections"].numpy() >= 0).all()
        batches.append((signature, len(found["num_detections"])))
    assert batches == [*(("serving_default", size) for size in (1, 2, 4, 8)), ("images", 1)]


@pytest.fixture(scope="module")
def raw(untrained, tmp_path_factory):
    """(the folder of the network alone, fed images, the raw outputs for them)."""
    detector, _ = untrained
    folder = serving.export_raw(detector, tmp_path_factory.mktemp("raw"))
    images = np.random.default_rng(0).uniform(0, 255, (2, 300, 300, 3)).astype(np.float32)
    return folder, images, {key: np.asarray(value) for key, value in detector(images, training=False).items()}


def test_the_raw_export_gives_raw_outputs(raw):
    folder, images, expected = raw
    signatures = tf.saved_model.load(folder).signatures
    assert list(signatures) == ["serving_default"]
    assert signatures["serving_default"].structured_input_signature[1]["images"].shape.as_list() == [None, 300, 300, 3]
    found = signatures["serving_default"](tf.constant(images))
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4)


def test_openvino_runs_the_raw_export(raw, untrained, draw_image):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    folder, images, expected = raw
    # Left alone it computes in bfloat16 where the processor can.
    model = openvino.compile_model(openvino.convert_model(folder), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for key, value in expected.items():
        np.testing.assert_allclose(model(images)[key], value, rtol=0, atol=1e-4)

    detector, _ = untrained
    image = load_image(draw_image(150, 90, [(10, 20, 60, 70)], [0]))
    outputs = model(np.asarray(detector.resizer(image))[None])
    found = detector.decoder({key: tf.constant(outputs[key]) for key in expected})
    found["boxes"] /= detector.resizer.scale(150, 90)
    predicted = detector.predict(image[None], verbose=0)
    assert_same_best(*({key: value[0] for key, value in one.items()} for one in (found, predicted)))


def test_an_existing_version_is_left_as_it_is(exported, untrained):
    files = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    with pytest.raises(FileExistsError, match=r"1: this version exists already"):
        serving.export(untrained[0], exported, 1)
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == files


def test_a_version_appears_only_when_it_is_complete(small, tmp_path, monkeypatch):
    def cut_off(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", cut_off)  # the last file of all
        with pytest.raises(OSError, match="disk full"):
            serving.export(small[0], tmp_path, 1)
    assert not (tmp_path / "1").exists()

    for version in (1, 2):  # what was left there is not in the way
        assert serving.export(small[0], tmp_path, version) == tmp_path / str(version)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    found = tf.saved_model.load(tmp_path / "1").signatures["images"](tf.zeros([1, 9, 9, 3], tf.uint8))
    assert found["scores"].shape[0] == 1
