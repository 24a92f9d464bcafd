import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdet import boxes as box_ops
from tfdet import nms

few = settings(max_examples=50, deadline=None)


def strip(*ranges):
    """Boxes that are 10 high and go from x1 to x2, so that an IoU is that of two intervals."""
    return np.array([(x1, 0, x2, 10) for x1, x2 in ranges], np.float32).reshape(-1, 4)


def greedy(boxes, scores, threshold):
    """The loop of every textbook, in numpy: indices of what is kept, best first."""
    overlaps = np.array(box_ops.iou(boxes, boxes))
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if all(overlaps[i, k] <= threshold for k in kept):
            kept.append(int(i))
    return kept


@st.composite
def scored_boxes(draw, max_size=14, num_labels=1):
    """Boxes on a coarse grid, so that they often overlap, with scores all different, and labels."""
    side, place = st.integers(1, 10), st.integers(-12, 12)
    rows = draw(st.lists(st.tuples(place, place, side, side), max_size=max_size))
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)
    scores = np.array(draw(st.permutations(range(1, len(rows) + 1))), np.float32) / (len(rows) + 1)
    labels = draw(st.lists(st.integers(0, num_labels - 1), min_size=len(rows), max_size=len(rows)))
    return boxes, scores, np.array(labels, np.int32)


THREE = strip((0, 10), (2, 12), (4, 14))  # IoU of neighbours 8/12, of the outer two 6/14
NMS_CASES = {
    "nothing": (strip(), [], 0.5, []),
    "one": (strip((0, 10)), [0.1], 0.5, [0]),
    "best first": (strip((0, 10), (20, 30), (40, 50)), [0.2, 0.9, 0.5], 0.5, [1, 2, 0]),
    "the best suppresses its neighbours": (THREE, [0.5, 0.9, 0.6], 0.5, [1]),
    "who is suppressed suppresses nobody": (THREE, [0.9, 0.6, 0.5], 0.5, [0, 2]),
    "a high threshold": (THREE, [0.9, 0.6, 0.5], 0.7, [0, 1, 2]),
    "a low threshold": (THREE, [0.9, 0.6, 0.5], 0.4, [0]),
    "IoU at the threshold is kept": (strip((0, 10), (0, 5)), [0.9, 0.8], 0.5, [0, 1]),
    "IoU above the threshold is not": (strip((0, 10), (0, 5.01)), [0.9, 0.8], 0.5, [0]),
    "identical": (strip((0, 10), (0, 10)), [0.8, 0.9], 0.99, [1]),
    "equals in the order in which they came": (strip((40, 50), (0, 10), (20, 30)), [0.5, 0.5, 0.5], 0.5, [0, 1, 2]),
    "of equals the first survives": (THREE, [0.5, 0.5, 0.5], 0.4, [0]),
    "boxes without area do not overlap": (strip((5, 5), (5, 5), (0, 10)), [0.9, 0.8, 0.7], 0.5, [0, 1, 2]),
    "negative scores": (strip((0, 10), (20, 30)), [-2, -1], 0.5, [1, 0]),
}


@pytest.mark.parametrize(("boxes", "scores", "threshold", "kept"), NMS_CASES.values(), ids=NMS_CASES)
def test_nms_by_hand(boxes, scores, threshold, kept):
    found = nms.nms(boxes, np.array(scores, np.float32), threshold)
    assert found.dtype == tf.int32
    assert found.numpy().tolist() == kept
    # x and y are treated alike.
    assert nms.nms(boxes[:, [1, 0, 3, 2]], np.array(scores, np.float32), threshold).numpy().tolist() == kept


def test_nms_stops_after_so_many():
    boxes = strip((0, 10), (20, 30), (40, 50))
    assert nms.nms(boxes, [0.2, 0.9, 0.5], 0.5, max_outputs=2).numpy().tolist() == [1, 2]
    assert nms.batched_nms(boxes, [0.2, 0.9, 0.5], [0, 1, 0], 0.5, max_outputs=1).numpy().tolist() == [1]


@few
@given(scored_boxes(), st.sampled_from([0.1, 0.3, 0.5, 0.8]))
def test_nms_equals_the_loop(detections, threshold):
    boxes, scores, _ = detections
    assert nms.nms(boxes, scores, threshold).numpy().tolist() == greedy(boxes, scores, threshold)


@few
@given(scored_boxes(num_labels=4), st.sampled_from([0.0, 0.3, 0.5]))
def test_batched_nms_equals_nms_label_by_label(detections, threshold):
    boxes, scores, labels = detections
    kept = []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        kept += indices[greedy(boxes[indices], scores[indices], threshold)].tolist()
    expected = sorted(kept, key=lambda i: -scores[i])
    assert nms.batched_nms(boxes, scores, labels, threshold).numpy().tolist() == expected


@pytest.mark.parametrize("corner", [0, -100, -7.5])
def test_batched_nms_labels_stay_apart_wherever_the_boxes_lie(corner):
    boxes = np.array([(0, 0, 10, 10), (1, 0, 11, 10), (0, 0, 10, 10)], np.float32) + corner
    assert nms.batched_nms(boxes, [0.9, 0.8, 0.7], [0, 0, 1], 0.0).numpy().tolist() == [0, 2]
    assert nms.batched_nms(np.zeros((0, 4)), [], np.zeros(0, int), 0.5).shape == (0,)


def soft_reference(boxes, scores, sigma, score_threshold):
    """Bodla et al. 2017, figure 2, with the Gaussian penalty."""
    overlaps, scores = np.array(box_ops.iou(boxes, boxes), np.float64), scores.astype(np.float64)
    kept, left = [], list(range(len(scores)))
    while left:
        best = max(left, key=lambda i: scores[i])
        if scores[best] <= score_threshold:
            break
        kept.append(best)
        left.remove(best)
        for i in left:
            scores[i] *= np.exp(-(overlaps[best, i] ** 2) / sigma)
    return kept, scores[kept]


def test_soft_nms_by_hand():
    boxes = strip((0, 10), (0, 5), (20, 30))
    kept, scores = nms.soft_nms(boxes, [0.9, 0.8, 0.7], sigma=0.5)
    assert kept.numpy().tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.8 * np.exp(-0.25 / 0.5)], rtol=1e-5)
    kept, scores = nms.soft_nms(boxes, [0.9, 0.8, 0.7], sigma=0.5, score_threshold=0.5)
    assert kept.numpy().tolist() == [0, 2]
    assert nms.soft_nms(boxes, [0.9, 0.8, 0.7], max_outputs=1)[0].numpy().tolist() == [0]
    assert nms.soft_nms(strip(), [])[0].shape == (0,)


@few
@given(scored_boxes(max_size=10), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.001, 0.2]))
def test_soft_nms_equals_the_loop(detections, sigma, threshold):
    boxes, scores, _ = detections
    # Scores that are no simple fractions, so that no two become equal on the way.
    scores = (scores**1.234).astype(np.float32)
    expected, expected_scores = soft_reference(boxes, scores, sigma, threshold)
    kept, new_scores = nms.soft_nms(boxes, scores, sigma, threshold)
    assert kept.numpy().tolist() == expected
    np.testing.assert_allclose(new_scores, expected_scores, rtol=1e-4)


def run_multiclass(boxes, scores, iou=0.5, score=0.01, pre_nms=400, keep=5):
    """With a batch of one; returns the detections of that image without padding, after looking at the padding."""
    found = nms.multiclass_nms(np.float32(boxes)[None], np.float32(scores)[None], iou, score, pre_nms, keep)
    found = {name: value.numpy()[0] for name, value in found.items()}
    check_padding(found, keep)
    count = found.pop("num_detections")
    return tuple(value[:count].tolist() for value in found.values())


def check_padding(found, keep):
    assert (found["boxes"].shape, found["boxes"].dtype) == ((keep, 4), np.float32)
    assert (found["scores"].shape, found["scores"].dtype) == ((keep,), np.float32)
    assert (found["labels"].shape, found["labels"].dtype) == ((keep,), np.int32)
    assert found["num_detections"].dtype == np.int32
    count = found["num_detections"]
    assert (found["boxes"][count:] == 0).all()
    assert (found["scores"][count:] == 0).all()
    assert (found["labels"][count:] == -1).all()
    assert (found["labels"][:count] >= 0).all()


def test_multiclass_classes_are_independent():
    boxes, scores, labels = run_multiclass(strip((0, 10), (1, 11)), [(0.75, 0.25), (0.5, 0.625)])
    assert labels == [0, 1]
    assert scores == [0.75, 0.625]
    assert boxes == strip((0, 10), (1, 11)).tolist()


def test_multiclass_one_box_may_serve_two_classes():
    boxes, scores, labels = run_multiclass(strip((0, 10)), [(0.5, 0.25, 0.0)])
    assert (labels, scores, boxes) == ([0, 1], [0.5, 0.25], strip((0, 10), (0, 10)).tolist())


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.5, [0.75]), (0.25, [0.75, 0.5]), (0.75, []), (0, [0.75, 0.5, 0.25])]
)
def test_multiclass_a_score_must_exceed_the_threshold(threshold, kept):
    _, scores, _ = run_multiclass(strip((0, 10), (20, 30), (40, 50)), [[0.25], [0.75], [0.5]], score=threshold)
    assert scores == kept


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, [0.75, 0.5]), (0.4999, [0.75])])
def test_multiclass_iou_at_the_threshold_is_kept(threshold, kept):
    _, scores, _ = run_multiclass(strip((0, 10), (0, 5)), [[0.75], [0.5]], iou=threshold)
    assert scores == kept


def test_multiclass_boxes_may_lie_outside_the_unit_square_and_the_image():
    far = [(-30, -20, -10, -5), (500, 600, 700, 900)]
    boxes, _, _ = run_multiclass(far, [[0.75], [0.5]])
    assert boxes == [list(map(float, box)) for box in far]


@pytest.mark.parametrize(("pre_nms", "kept"), [(1, [0.75]), (2, [0.75]), (3, [0.75, 0.5])])
def test_multiclass_only_the_best_of_each_class_go_into_nms(pre_nms, kept):
    """The second is suppressed; the third survives only if it got that far."""
    _, scores, _ = run_multiclass(strip((0, 10), (0, 9), (20, 30)), [[0.75], [0.625], [0.5]], pre_nms=pre_nms)
    assert scores == kept


def test_multiclass_the_limit_before_nms_is_per_class():
    _, _, labels = run_multiclass(strip((0, 10), (20, 30)), [(0.75, 0.5), (0.25, 0.625)], pre_nms=1)
    assert labels == [0, 1]


def test_multiclass_max_detections_are_the_best_over_all_classes():
    boxes = strip(*[(20 * i, 20 * i + 10) for i in range(4)])
    scores = np.linspace(0.9, 0.1, 12).reshape(4, 3)
    _, kept, labels = run_multiclass(boxes, scores, keep=7)
    np.testing.assert_allclose(kept, scores.ravel()[:7], rtol=1e-6)
    assert labels == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("pre_nms", [1, 2, 400])
def test_multiclass_boxes_of_each_class_by_hand(pre_nms):
    """Two rows; in the first class they overlap, in the second they do not. One of each class with `pre_nms` 1."""
    boxes = np.stack([strip((0, 10), (1, 11)), strip((20, 30), (40, 50))], axis=1)  # [rows, classes, 4]
    found, scores, labels = run_multiclass(boxes, [(0.5, 0.625), (0.75, 0.25)], pre_nms=pre_nms)
    expected = [(0.75, 0, strip((1, 11))), (0.625, 1, strip((20, 30))), (0.25, 1, strip((40, 50)))]
    expected = expected[: 2 if pre_nms == 1 else 3]
    assert list(zip(scores, labels, strict=True)) == [(score, label) for score, label, _ in expected]
    np.testing.assert_array_equal(found, np.concatenate([box for *_, box in expected]))


@pytest.mark.parametrize("own_boxes", [False, True])
@pytest.mark.parametrize(("num_images", "num_boxes"), [(2, 3), (2, 0), (0, 3), (0, 0)])
def test_multiclass_without_any_detection(num_images, num_boxes, own_boxes):
    boxes = np.zeros((num_images, num_boxes, *((2,) if own_boxes else ()), 4))
    scores = np.zeros((num_images, num_boxes, 2))
    found = nms.multiclass_nms(boxes, scores, 0.5, 0.01, 400, 6)
    assert found["num_detections"].numpy().tolist() == [0] * num_images
    assert found["boxes"].shape == (num_images, 6, 4)
    for image in range(num_images):
        check_padding({name: value.numpy()[image] for name, value in found.items()}, 6)


def multiclass_reference(boxes, scores, iou, score, pre_nms, keep):
    """boxes [N, C, 4] -> [(score, label, row)], best first."""
    found = []
    for label in range(scores.shape[1]):
        best = np.argsort(-scores[:, label], kind="stable")[:pre_nms]
        best = best[scores[best, label] > score]
        found += [(scores[i, label], label, i) for i in best[greedy(boxes[best, label], scores[best, label], iou)]]
    return sorted(found, reverse=True)[:keep]


@few
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([2, 5, 100]),
    st.sampled_from([4, 50]),
    st.booleans(),
)
def test_multiclass_equals_the_loops(seed, num_boxes, pre_nms, keep, own_boxes):
    random = np.random.default_rng(seed)
    shape = (2, num_boxes, *((3,) if own_boxes else ()), 2)  # of each class, or for all of them
    corner = random.integers(0, 20, shape)
    boxes = np.concatenate([corner, corner + random.integers(1, 12, shape)], axis=-1).astype(np.float32)
    scores = random.permutation(2 * num_boxes * 3).reshape(2, num_boxes, 3).astype(np.float32) / (6 * num_boxes)
    found = nms.multiclass_nms(boxes, scores, 0.4, 0.1, pre_nms, keep)
    for image in range(2):
        detections = {name: value.numpy()[image] for name, value in found.items()}
        check_padding(detections, keep)
        own = boxes[image] if own_boxes else np.repeat(boxes[image][:, None], 3, axis=1)
        expected = multiclass_reference(own, scores[image], 0.4, 0.1, pre_nms, keep)
        count = detections["num_detections"]
        assert count == len(expected)
        assert detections["labels"][:count].tolist() == [label for _, label, _ in expected]
        np.testing.assert_array_equal(detections["scores"][:count], [score for score, _, _ in expected])
        for box, (_, label, i) in zip(detections["boxes"], expected, strict=False):
            np.testing.assert_array_equal(box, own[i, label])


def found_once(*detections, keep=3):
    """Detections (box, score, label) of one image, as a detector returns them."""
    boxes, scores, labels = (np.array([one[i] for one in detections]) for i in range(3))
    missing = keep - len(detections)
    found = nms.padded(
        np.pad(np.float32(boxes).reshape(-1, 4), [(0, missing), (0, 0)], constant_values=7)[None],
        np.pad(np.float32(scores), (0, missing), constant_values=7)[None],
        np.pad(np.int32(labels), (0, missing), constant_values=7)[None],
        (np.arange(keep) < len(detections))[None],
    )
    check_padding({name: value.numpy()[0] for name, value in found.items()}, keep)
    return found


BOX, HALF, FAR = (0, 0, 10, 10), (0, 0, 5, 10), (20, 20, 30, 30)
ONCE, HALF_ONCE = np.exp(-1 / 0.5), np.exp(-0.25 / 0.5)  # what IoU 1 and IoU 1/2 leave of a score
MERGES = {
    "nothing": ([[], []], []),
    "of one": ([[(BOX, 0.9, 0)], []], [(BOX, 0.9, 0)]),
    "apart": ([[(BOX, 0.5, 0)], [(FAR, 0.9, 0)]], [(FAR, 0.9, 0), (BOX, 0.5, 0)]),
    "of two classes": ([[(BOX, 0.5, 0)], [(BOX, 0.9, 1)]], [(BOX, 0.9, 1), (BOX, 0.5, 0)]),
    "the same twice": ([[(BOX, 0.5, 2)], [(BOX, 0.9, 2)]], [(BOX, 0.9, 2), (BOX, 0.5 * ONCE, 2)]),
    "half of it": ([[(HALF, 0.8, 1)], [(BOX, 0.9, 1)]], [(BOX, 0.9, 1), (HALF, 0.8 * HALF_ONCE, 1)]),
    "loses its place": (
        [[(BOX, 0.9, 0), (BOX, 0.8, 0)], [(FAR, 0.3, 0)]],
        [(BOX, 0.9, 0), (FAR, 0.3, 0), (BOX, 0.8 * ONCE, 0)],
    ),
    "next to nothing is left": ([[(BOX, 0.9, 0)], [(BOX, 0.005, 0)]], [(BOX, 0.9, 0)]),
    "only the best": (
        [[(BOX, 0.9, 0), (FAR, 0.7, 0)], [(BOX, 0.6, 1), (FAR, 0.5, 1)]],
        [(BOX, 0.9, 0), (FAR, 0.7, 0), (BOX, 0.6, 1)],
    ),
}


@pytest.mark.parametrize(("detections", "expected"), MERGES.values(), ids=MERGES)
def test_soft_merge_by_hand(detections, expected):
    merged = nms.soft_merge([found_once(*one) for one in detections], 3)
    found = {name: value.numpy()[0] for name, value in merged.items()}
    check_padding(found, 3)
    count = found["num_detections"]
    assert count == len(expected)
    np.testing.assert_allclose(found["boxes"][:count], np.reshape([box for box, *_ in expected], (-1, 4)))
    np.testing.assert_allclose(found["scores"][:count], [score for _, score, _ in expected], rtol=1e-5)
    assert found["labels"][:count].tolist() == [label for *_, label in expected]


def test_soft_merge_keeps_images_apart_also_in_a_graph():
    one, other = found_once((BOX, 0.5, 0)), found_once((BOX, 0.9, 0), (FAR, 0.4, 1))
    batch = {name: tf.concat([one[name], other[name]], axis=0) for name in one}
    specs = {name: tf.TensorSpec([None, *value.shape[1:]], value.dtype) for name, value in batch.items()}
    merge = tf.function(lambda found: nms.soft_merge([found], 2), [specs])
    found = merge(batch)
    assert found["num_detections"].numpy().tolist() == [1, 2]
    np.testing.assert_allclose(found["scores"], [[0.5, 0], [0.9, 0.4]])
    assert merge({name: value[:0] for name, value in batch.items()})["boxes"].shape == (0, 2, 4)


# scores of three places with two classes, how many pairs -> places, scores of all their classes
NOTHING = -np.inf
PAIRS = {
    "two of one place": ([(5, 1), (4, 6), (2, 0)], 2, [1, 0], [(NOTHING, 6), (5, NOTHING)]),
    "both of one place": ([(1, 2), (8, 9), (3, 4)], 2, [1, 2], [(8, 9), (NOTHING, NOTHING)]),
    "more than there are places": ([(5, 1), (4, 6), (2, 0)], 4, [1, 0, 2], [(4, 6), (5, NOTHING), (2, NOTHING)]),
    "all": ([(5, 1), (4, 6), (2, 0)], 100, [1, 0, 2], [(4, 6), (5, 1), (2, 0)]),
    "one": ([(-5, -1), (-4, -6), (-2, -3)], 1, [0], [(NOTHING, -1)]),
    "as good as the last": ([(7, 3), (3, 3), (1, 3)], 2, [0, 1], [(7, 3), (3, 3)]),
}


@pytest.mark.parametrize(("scores", "count", "places", "expected"), PAIRS.values(), ids=PAIRS)
def test_best_pairs_by_hand(scores, count, places, expected):
    found, kept = nms.best_pairs(np.float32([scores]), count)
    np.testing.assert_array_equal(found, [places])
    np.testing.assert_array_equal(kept, [expected])


def test_best_pairs_are_those_of_each_image():
    scores = np.random.default_rng(0).permutation(2 * 30 * 4).reshape(2, 30, 4).astype(np.float32)
    places, kept = nms.best_pairs(scores, 7)
    assert places.shape == (2, 7) and kept.shape == (2, 7, 4)
    for i in range(2):
        expected = np.sort(scores[i].ravel())[-7:]
        np.testing.assert_array_equal(np.sort(kept[i][kept[i] > NOTHING]), expected)
        chosen = scores[i][places[i]]
        np.testing.assert_array_equal(kept[i], np.where(chosen >= expected[0], chosen, NOTHING))


def test_soft_merge_drops_what_is_not_better_than_the_threshold():
    found = nms.soft_merge([found_once((BOX, 0.9, 0), (BOX, 0.5, 0), (FAR, 0.05, 0))], 3, score_threshold=0.06)
    np.testing.assert_allclose(found["scores"], [[0.9, 0.5 * ONCE, 0]], rtol=1e-5)
    found = nms.soft_merge([found_once((BOX, 0.9, 0), (BOX, 0.5, 0), (FAR, 0.05, 0))], 3, score_threshold=0.07)
    np.testing.assert_allclose(found["scores"], [[0.9, 0, 0]], rtol=1e-5)
