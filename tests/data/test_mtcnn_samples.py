"""Which squares MTCNN learns from, and what: tables that can be checked by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfdet.area import AreaTable
from tfdet.data import mtcnn_samples as samples
from tfdet.data.mtcnn_samples import DROPPED, NEGATIVE, PART, POSITIVE
from tfdet.data.transforms import Draw
from tfdet.detectors.mtcnn import _moved

SQUARE = (1, 1, 100, 100)  # pixels 1 to 100: the box 0, 0, 100, 100


def kind_of(square, faces, learnt=None):
    faces = np.reshape(faces, (-1, 4)).astype(np.float32)
    learnt = np.ones(len(faces), bool) if learnt is None else np.array(learnt, bool)
    kind, face = samples.kinds(tf.constant([square], tf.float32), tf.constant(faces), tf.constant(learnt))
    return int(kind[0]), int(face[0])


# The IoU of a square and itself moved by s of its 100 pixels is (100 - s) / (100 + s).
@pytest.mark.parametrize(
    ("face", "kind"),
    [
        ((0, 0, 100, 100), POSITIVE),
        ((21, 0, 121, 100), POSITIVE),  # 0.653
        ((22, 0, 122, 100), PART),  # 0.639
        ((0, 0, 100, 66), POSITIVE),
        ((0, 0, 100, 65), PART),  # 0.65 itself
        ((0, 42, 100, 142), PART),  # 0.408
        ((0, 0, 40, 100), PART),  # 0.4 itself
        ((0, 43, 100, 143), DROPPED),  # 0.399
        ((-53, 0, 47, 100), DROPPED),  # 0.307
        ((-54, 0, 46, 100), NEGATIVE),  # 0.299
        ((200, 200, 300, 300), NEGATIVE),
    ],
)
def test_kinds(face, kind):
    assert kind_of(SQUARE, [face]) == (kind, 0)


@pytest.mark.parametrize(
    ("faces", "learnt", "expected"),
    [
        ([], [], (NEGATIVE, 0)),
        ([(200, 0, 300, 100), (10, 0, 110, 100)], [True, True], (POSITIVE, 1)),
        ([(0, 0, 100, 100)], [False], (DROPPED, 0)),
        ([(0, 42, 100, 142)], [False], (DROPPED, 0)),
        ([(0, 50, 100, 150)], [False], (DROPPED, 0)),  # not a negative: all faces count
        ([(0, 60, 100, 160)], [False], (NEGATIVE, 0)),
        # The face it overlaps most is the one that counts, learnt from or not.
        ([(0, 0, 100, 100), (20, 0, 120, 100)], [False, True], (DROPPED, 0)),
    ],
)
def test_all_faces_count_but_not_all_are_learnt(faces, learnt, expected):
    assert kind_of(SQUARE, faces, learnt) == expected


@pytest.mark.parametrize(("ratio", "positives"), [(0.6, False), (0.65, True)])
def test_a_narrow_face_has_no_positives(ratio, positives):
    """The best square has the sides sqrt(width * height): its IoU is sqrt(ratio) / (2 - sqrt(ratio))."""
    face = (1000.0, 1000.0, 1000 + 600 * ratio, 1600.0)
    sides = np.arange(300, 650, 2)
    middle = np.array([(face[0] + face[2]) / 2, (face[1] + face[3]) / 2])
    corners = np.round(middle - sides[:, None] / 2)
    squares = tf.constant(np.concatenate([corners + 1, corners + sides[:, None]], axis=1), tf.float32)
    kind, _ = samples.kinds(squares, tf.constant([face]), tf.constant([True]))
    assert bool(tf.reduce_any(kind == POSITIVE)) == positives


def test_drawn_squares():
    faces = tf.constant([[40.0, 50.0, 90.0, 110.0], [300.0, 20.0, 306.0, 28.0]])
    learnt = tf.constant([True, False])
    squares = samples.drawn_squares(faces, learnt, 200, 400, 20, Draw(tf.constant([3, 4]))).numpy()
    cut = samples.whole_pixels(tf.constant(squares)).numpy()
    assert len(squares) == samples.ANYWHERE + samples.BESIDE + samples.AROUND
    np.testing.assert_array_equal(cut[:, 2], cut[:, 3])  # squares, of whole pixels
    np.testing.assert_array_equal(squares, np.round(squares))

    anywhere, beside, around = np.split(cut, [samples.ANYWHERE, samples.ANYWHERE + samples.BESIDE])
    assert (anywhere[:, :2] >= 0).all() and (anywhere[:, :2] + anywhere[:, 2:] <= (400, 200)).all()
    assert anywhere[:, 2].min() >= 20 and anywhere[:, 2].max() <= 100
    assert (beside[:, 2] >= 44 - 1).all() and (beside[:, 2] <= 69 + 1).all()  # 0.8 to 1.25 of the mean side, 55
    assert (np.abs(around[:, :2] + around[:, 2:] / 2 - (65, 80)) <= (10 + 1, 12 + 1)).all()  # a fifth of 50 and of 60
    assert (around[:, 2] >= 40 - 1).all() and (around[:, 2] <= 75 + 1).all()
    kind, _ = samples.kinds(tf.constant(squares), faces, learnt)
    assert {POSITIVE, PART, NEGATIVE} <= set(kind.numpy().tolist())


def test_what_inspect_shows_is_what_is_drawn():
    boxes = tf.constant(
        [[40.0, 50.0, 90.0, 110.0], [300.0, 20.0, 306.0, 28.0], [150, 20, 190, 120], [200, 50, 300, 150]]
    )
    labels, image = tf.constant([0, 0, 0, -1]), tf.zeros((200, 400, 3), tf.uint8)
    inspected = samples.PNetSamples(smallest=20)
    (found,) = inspected.samples(image, boxes, labels, tf.constant(7, tf.int64))
    learnt = tf.constant([True, False, True, False])
    squares = samples.drawn_squares(boxes, learnt, 200, 400, 20, Draw(tf.constant([7, 0], tf.int64)))
    kind, face = (values.numpy() for values in samples.kinds(squares, boxes, learnt))
    near = (kind == POSITIVE) | (kind == PART)
    np.testing.assert_array_equal(found.matched.numpy()[near], face[near])
    np.testing.assert_array_equal(found.matched.numpy()[~near], np.where(kind == NEGATIVE, -1, -2)[~near])
    assert [found.kinds[i] for i in found.kind.numpy()[near]] == [
        "part" if k == PART else "positive" for k in kind[near]
    ]
    np.testing.assert_array_equal(found.drawn, kind != DROPPED)
    # The second is too small, the third too narrow, and of the fourth, a crowd, nothing is to be learnt.
    assert [why and found.reasons[why - 1].split(":")[0] for why in found.why.numpy().tolist()] == [
        *(0, "smaller than 20 pixels", "too narrow", 0)
    ]


def test_inspect_shows_a_landmark_square_for_each_face():
    boxes, labels = tf.constant([[40.0, 50.0, 90.0, 100.0], [100.0, 20.0, 150.0, 70.0]]), tf.constant([0, -1])
    inspected = samples.PNetSamples(smallest=20, landmarks=True)
    _, found = inspected.samples(tf.zeros((200, 400, 3), tf.uint8), boxes, labels, tf.constant(7, tf.int64))
    assert found.kinds == ("landmark",)
    sides = (found.boxes[:, 2] - found.boxes[:, 0]).numpy()
    assert len(sides) == 2 and (sides >= 40 - 1).all() and (sides <= 75 + 1).all()  # 0.8 to 1.5 times the face
    matched, why = found.matched.numpy(), found.why.numpy()
    assert matched[0] in (0, -2) and (why[0] > 0) == (matched[0] == -2)
    assert matched[1] == -2 and why[1] == 0  # a crowd


def test_an_image_without_faces_has_squares_anywhere():
    none = tf.zeros((0, 4)), tf.zeros(0, tf.bool)
    squares = samples.drawn_squares(*none, 200, 400, 20, Draw(tf.constant([3, 4])))
    assert squares.shape == (samples.ANYWHERE, 4)
    assert (samples.kinds(squares, *none)[0].numpy() == NEGATIVE).all()


def test_an_image_smaller_than_the_smallest_face():
    squares = samples.drawn_squares(tf.zeros((0, 4)), tf.zeros(0, tf.bool), 9, 15, 20, Draw(tf.constant([0, 1])))
    cut = samples.whole_pixels(squares).numpy()
    assert np.isfinite(cut).all() and (cut[:, 2] >= 20).all()


def test_the_cascade_moves_boxes_to_where_the_targets_say():
    squares = tf.constant([[11.0, 21.0, 60.0, 70.0], [-3.5, 4.2, 30.1, 37.8]])
    faces = tf.constant([[15.0, 18.0, 55.0, 68.0], [0.0, 7.0, 25.0, 39.0]])
    moves = samples.box_targets(squares, faces, of_pnet=False)
    np.testing.assert_allclose(_moved(squares, moves), faces, atol=1e-4)
    np.testing.assert_allclose(moves[0], [4 / 50, -3 / 50, -5 / 50, -2 / 50], atol=1e-6)

    # P-Net's own box: at the scale 12/48 its first pixel ends at 4 and its last at 48 of the image.
    moves = samples.box_targets(tf.constant([[1.0, 1.0, 48.0, 48.0]]), tf.constant([[4.0, 15.0, 37.0, 48.0]]), True)
    np.testing.assert_allclose(moves[0], [0, 11 / 44, -11 / 44, 0], atol=1e-6)
    np.testing.assert_allclose(_moved(tf.constant([[4.0, 4.0, 48.0, 48.0]]), moves, added=0)[0], [4, 15, 37, 48])


LANDMARKS = tf.constant([[[20.0, 30.0], [40.0, 30.0], [30.0, 40.0], [22.0, 50.0], [38.0, 52.0]]])


def test_landmark_targets_are_all_x_then_all_y():
    targets = samples.landmark_targets(tf.constant([[11.0, 21.0, 50.0, 60.0]]), LANDMARKS)  # from 10, 20; 40 wide
    np.testing.assert_allclose(targets, [[0.25, 0.75, 0.5, 0.3, 0.7, 0.25, 0.25, 0.5, 0.75, 0.8]])


def test_a_mirror_exchanges_eyes_and_corners_of_the_mouth():
    squares, which = tf.constant([[11.0, 21.0, 50.0, 60.0]] * 2), tf.constant([True, False])
    crops = tf.reshape(tf.range(2 * 2 * 2 * 3), (2, 2, 2, 3))
    np.testing.assert_array_equal(samples.mirror_crops(crops, which)[0], crops[0][:, ::-1])
    np.testing.assert_array_equal(samples.mirror_crops(crops, which)[1], crops[1])
    faces = samples.mirror_faces(squares, tf.constant([[12.0, 20.0, 30.0, 50.0]] * 2), which)
    np.testing.assert_allclose(faces, [[30, 20, 48, 50], [12, 20, 30, 50]])  # x becomes 60 - x
    landmarks = samples.mirror_landmarks(squares, tf.repeat(LANDMARKS, 2, axis=0), which)
    np.testing.assert_allclose(landmarks[0], [[20, 30], [40, 30], [30, 40], [22, 52], [38, 50]])
    np.testing.assert_allclose(landmarks[1], LANDMARKS[0])


@pytest.mark.parametrize("degrees", [0, 15, -15])
@pytest.mark.parametrize("square", [(31, 21, 70, 60), (1, 1, 60, 60), (-9, 1, 70, 80)])
def test_rotated_crops_show_landmarks_where_they_are_said_to_be(degrees, square):
    """Dots of five colours: in the crop each lies where its landmark says."""
    places = np.array([(42, 32), (58, 34), (50, 42), (44, 50), (57, 51)], np.float32)
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)], np.float32)
    y, x = np.mgrid[:100, :100] + 0.5
    near = np.hypot(x - places[:, 0, None, None], y - places[:, 1, None, None]) < 2.6
    image = (near[..., None] * colours[:, None, None]).sum(axis=0)

    squares, side = tf.constant([square], tf.float32), 48
    table, angles = AreaTable(tf.constant(image)), tf.constant([np.radians(degrees)], tf.float32)
    crops, landmarks = samples.rotated_crops(table, squares, tf.constant(places[None]), side, angles)
    targets = samples.landmark_targets(squares, landmarks).numpy().reshape(2, 5).T * side
    y, x = np.mgrid[:side, :side] + 0.5
    seen = 0
    for colour, target in zip(colours, targets, strict=True):
        likeness = np.clip(crops[0].numpy() @ (2 * colour / 255 - 1), 0, None) * (crops[0].numpy().max(axis=-1) > 100)
        likeness *= likeness > 0.6 * likeness.max()
        if likeness.max() > 100 and (target > 4).all() and (target < side - 4).all():
            centre = np.array([(likeness * x).sum(), (likeness * y).sum()]) / likeness.sum()
            np.testing.assert_allclose(centre, target, atol=0.7)
            seen += 1
    assert seen >= 3
    if not degrees:
        np.testing.assert_allclose(landmarks[0], places, atol=1e-4)


def test_a_turn_to_the_right_takes_the_top_to_the_right():
    image = tf.zeros((60, 60, 3))
    squares, landmarks = tf.constant([[11.0, 11.0, 50.0, 50.0]]), tf.constant([[[30.0, 20.0]] * 5])
    _, turned = samples.rotated_crops(AreaTable(image), squares, landmarks, 12, tf.constant([np.pi / 2]))
    np.testing.assert_allclose(turned[0, 0], [40, 30], atol=1e-4)
