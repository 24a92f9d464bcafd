"""MTCNN. It has no row in test_contracts.py, all of which trains the detector as a whole; what these promise of one
that is trained is tested here, with weights from nowhere that find something.

Numbers of PyTorch are facenet-pytorch 2.6.0's with these weights, made once, with what lies beside the image black and
landmarks counted from the square as it was cut out, as in the released Matlab code and here.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfdet
from tfdet import alignment, serving
from tfdet.__main__ import main
from tfdet.area import AreaTable
from tfdet.detectors.mtcnn import MTCNN, _overlaps, _square
from tfdet.detectors.mtcnn_networks import onet, pnet, rnet
from tfdet.detectors.mtcnn_original import mtcnn_original
from tfdet.errors import TfdetError

KEYS = {"boxes", "scores", "labels", "num_detections", "keypoints", "keypoint_scores", "landmarks"}


@pytest.fixture(scope="module")
def detector(facenet_folder):
    """One that takes coloured squares for faces."""
    return mtcnn_original(facenet_folder, thresholds=(0.6, 0.3, 0.01))


def found_in(detector, image):
    found = detector.predict_on_batch(image[None])
    count = int(found["num_detections"][0])
    return {key: np.asarray(value[0][:count]) for key, value in found.items() if key != "num_detections"}


def encoded(image):
    return tf.io.encode_png(image).numpy()


@pytest.mark.parametrize(
    ("network", "count", "with_landmarks"), [(pnet, 6_632, 6_962), (rnet, 100_178, 101_468), (onet, 389_040, None)]
)
def test_the_networks_have_the_published_size(network, count, with_landmarks):
    assert network().count_params() == count
    if with_landmarks:
        bigger = network(landmarks=True)
        assert bigger.count_params() == with_landmarks
        assert set(bigger.output) == {"face", "box", "landmarks"}


# Of PyTorch: (shape of the input, {output: (sum, last row)}); sums are over a batch of two.
OUTPUTS = {
    "pnet": (
        (31, 26),
        {
            "face": (176.0, [0.80871, 0.19129]),
            "box": (-0.71464, [0.0118853, -0.0471652, -0.01996198, 0.08821163]),
        },
    ),
    "rnet": (
        (24, 24),
        {"face": (2.0, [0.70552933, 0.2944707]), "box": (-0.455273, [-0.0591294, 0.1584009, -0.1264525, -0.1818677])},
    ),
    "onet": (
        (48, 48),
        {
            "face": (2.0, [0.99977094, 0.00022906]),
            "box": (-0.9833293, [-0.0886754, -0.2966205, 0.0362219, -0.1340344]),
            "landmarks": (
                -1.6341995,
                [
                    *(-0.2206559, -0.132541, -0.1900914, -0.0688532, -0.0183237),
                    *(-0.0702761, -0.2143092, 0.0573171, 0.0655348, -0.1210714),
                ],
            ),
        },
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_networks_say_what_they_say_in_pytorch(detector, name):
    size, expected = OUTPUTS[name]
    images = np.random.RandomState(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    outputs = getattr(detector, name)(images)
    outputs = {**outputs, "face": keras.ops.softmax(outputs["face"])}
    assert set(outputs) == set(expected)
    for key, (total, last) in expected.items():
        values = np.asarray(outputs[key])
        assert values.sum(dtype=float) == pytest.approx(total, abs=1e-4), key
        np.testing.assert_allclose(values.reshape(-1, values.shape[-1])[-1], last, atol=1e-5, err_msg=key)


FACES = {  # of PyTorch: number, sums of boxes, scores and landmarks, best boxes, their scores, best landmarks
    (90, 120): (
        (42, 9325.1, 4.0573, 18562.5),
        [(5.44, 51.577, 35.397, 79.688), (25.565, 39.872, 44.852, 59.104), (68.25, 32.411, 88.746, 53.359)],
        (0.4882, 0.47586, 0.44161),
        [(4.312, 50.286), (3.513, 47.606), (3.745, 49.961), (5.006, 51.439), (3.795, 48.573)],
    ),
    (60, 75): (
        (13, 1780.29, 1.156, 3007.84),
        [(25.607, 39.852, 45.152, 59.341), (19.195, 39.596, 38.555, 59.739), (0.0, 16.611, 17.495, 37.014)],
        (0.47586, 0.16948, 0.13462),
        [(23.436, 37.961), (21.955, 37.232), (24.261, 38.736), (23.03, 38.315), (23.955, 37.238)],
    ),
}


@pytest.mark.parametrize("size", FACES)
def test_the_cascade_finds_what_it_finds_in_pytorch(detector, photograph, size):
    (count, boxes, scores, landmarks), best, best_scores, best_landmarks = FACES[size]
    found = found_in(detector, photograph[: size[0], : size[1]])
    assert len(found["boxes"]) == count
    np.testing.assert_allclose(found["boxes"][:3], best, atol=0.002)
    np.testing.assert_allclose(found["scores"][:3], best_scores, atol=1e-4)
    np.testing.assert_allclose(found["landmarks"][0], best_landmarks, atol=0.002)
    assert found["boxes"].sum() == pytest.approx(boxes, abs=0.2)
    assert found["scores"].sum() == pytest.approx(scores, abs=1e-3)
    assert found["landmarks"].sum() == pytest.approx(landmarks, abs=0.5)


@pytest.mark.parametrize(("size", "count", "total"), [((90, 120), 119, 26830.7), ((60, 75), 36, 5183.68)])
def test_pnet_proposes_what_it_proposes_in_pytorch(detector, photograph, size, count, total):
    squares = detector._propose(AreaTable(photograph[: size[0], : size[1]]))
    assert squares.shape == (count, 4)
    assert np.asarray(squares).sum(dtype=float) == pytest.approx(total, abs=0.5)


def test_detections_have_one_form(detector, photograph):
    found = detector.predict(np.stack([photograph, photograph[:, ::-1]]), verbose=0)
    assert set(found) == KEYS
    assert found["landmarks"].shape == (2, 200, 5, 2)
    assert found["landmarks"].dtype == np.float32
    assert (found["landmarks"] == found["keypoints"]).all()
    padding = np.arange(200) >= found["num_detections"][:, None]
    assert 0 < padding.sum() < padding.size
    assert (found["labels"] == np.where(padding, -1, 0)).all()
    assert ((found["scores"] > 0) == ~padding).all()
    assert (np.diff(found["scores"]) <= 0).all()
    assert (found["keypoint_scores"] == found["scores"][..., None]).all()
    assert all((found[key][padding] == 0).all() for key in ("boxes", "landmarks"))
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= [120, 90, 120, 90]).all()


def test_an_image_is_found_the_same_beside_larger_ones(detector, photograph, tmp_path):
    """Also one that is smaller than a face, and one whose sides are uneven."""
    images = [photograph, photograph[:60, :75], photograph[:15, :120], photograph[:61, :77]]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(encoded(image))
    together = tfdet.detect_files(detector, paths, batch_size=4)
    assert [len(one.scores) for one in together[:3]] == [42, 13, 0]
    for one, image in zip(together, images, strict=True):
        alone = found_in(detector, image)
        np.testing.assert_allclose(one.boxes, alone["boxes"], atol=1e-3)
        np.testing.assert_allclose(one.keypoints, alone["landmarks"], atol=1e-3)


def test_no_size_needs_another_graph(detector, photograph):
    for height, width, count in ((90, 120, 1), (60, 75, 2), (33, 120, 1), (5, 7, 1)):
        detector.predict_on_batch(np.repeat(photograph[None, :height, :width], count, axis=0))
    detector.predict(photograph[None, :50], verbose=0)
    assert detector._found.experimental_get_tracing_count() == 1


def test_min_face_leaves_out_what_is_smaller(detector, facenet_folder, photograph):
    large = mtcnn_original(facenet_folder, 40, (0.6, 0.3, 0.01))
    sides = [found_in(one, photograph)["boxes"] for one in (large, detector)]
    large, every = ((boxes[:, 2:] - boxes[:, :2]).max(axis=1) for boxes in sides)
    assert large.min() > 25 > every.min()
    assert 0 < len(large) < len(every)


def test_saved_and_loaded_it_finds_the_same(detector, photograph, tmp_path):
    detector.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, MTCNN)
    assert loaded.class_names == ("face",)
    found, expected = found_in(loaded, photograph), found_in(detector, photograph)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_the_export_equals_predict(detector, photograph, tmp_path):
    folder = tfdet.export(detector, tmp_path / "export")
    assert (folder / "assets.extra" / "keypoint_names.txt").read_text().split() == list(detector.keypoint_names)
    files = [encoded(photograph), b"no picture", encoded(photograph[:60, :75])]
    expected = [found_in(detector, photograph), None, found_in(detector, photograph[:60, :75])]
    loaded = tf.saved_model.load(folder).signatures
    answers = [loaded["serving_default"](image_bytes=tf.constant(files))]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        signature = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder)).signature_def
        signature = signature["serving_default"]
        fetches = {key: tensor.name for key, tensor in signature.outputs.items()}
        answers.append(session.run(fetches, {signature.inputs["image_bytes"].name: files}))
    for answer in answers:
        assert set(answer) == KEYS
        assert np.asarray(answer["num_detections"]).tolist() == [42, -1, 13]
        for i in (0, 2):
            for key, value in expected[i].items():
                np.testing.assert_allclose(answer[key][i][: len(value)], value, atol=1e-3, err_msg=key)
    answer = loaded["images"](images=photograph[None])
    np.testing.assert_allclose(answer["landmarks"][0, :42], expected[0]["landmarks"], atol=1e-3)
    assert loaded["images"](images=np.zeros((0, 9, 9, 3), np.uint8))["boxes"].shape == (0, 200, 4)


def test_predict_draws_and_aligns_faces(detector, untrained, photograph, tmp_path, capsys):
    detector.save(tmp_path / "model.keras")
    (tmp_path / "photo.png").write_bytes(encoded(photograph))
    shared = [str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "--min-score", "0.3", "--align"]
    main(["predict", *shared, "--model", str(tmp_path / "model.keras")])
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert found["categories"][0]["keypoints"] == list(detector.keypoint_names)
    assert found["categories"][0]["skeleton"] == [[1, 2], [4, 5], [3, 1], [3, 2]]
    names = [f"photo-{i + 1}.png" for i in range(len(found["annotations"]))]
    assert len(names) == 3
    assert sorted(path.name for path in (tmp_path / "out" / "aligned").iterdir()) == names
    best = alignment.aligned(photograph, found_in(detector, photograph)["landmarks"][0])
    with Image.open(tmp_path / "out" / "aligned" / "photo-1.png") as picture:
        assert np.array_equal(picture, best)
    with pytest.raises(SystemExit) as error:
        main(["predict", *shared, "--model", str(untrained[1])])
    assert error.value.code == 2
    assert "--align needs a detector of faces" in capsys.readouterr().err


def test_a_copy_in_bfloat16_has_the_same_form(detector, photograph):
    found = tfdet.in_bfloat16(detector).predict_on_batch(photograph[None])
    assert set(found) == KEYS
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    assert found["num_detections"][0] > 20


def test_what_it_cannot_do_is_one_line(detector, photograph, tmp_path):
    with pytest.raises(TfdetError, match="one class, not 2"):
        MTCNN(("face", "hat"))
    with pytest.raises(TfdetError, match="no raw outputs"):
        serving.export_raw(detector, tmp_path)
    with pytest.raises(TfdetError, match="one by one"):
        detector.compute_loss(None, None, None)


def test_squares_and_overlaps():
    boxes = np.array([(10, 20, 30, 24), (0, 0, 5, 9)], np.float32)
    np.testing.assert_allclose(_square(boxes), [(10, 12, 30, 32), (-2, 0, 7, 9)])
    # The last pixels belong to them: 10 x 10, 5 x 5 inside of it, 10 x 10 of which a quarter is in the first.
    boxes = np.array([(1, 1, 10, 10), (2, 3, 6, 7), (6, 6, 15, 15), (40, 40, 45, 45)], np.float32)
    expected = [[1, 1, 0.25, 0], [1, 1, 0.08, 0], [0.25, 0.08, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(_overlaps(boxes), expected, atol=1e-6)
