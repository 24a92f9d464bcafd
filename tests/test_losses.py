import numpy as np
import pytest
import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import losses


@pytest.mark.parametrize(
    ("target", "prediction", "beta", "loss", "slope"),
    [
        (0, 0, 1, 0, 0),
        (0, 0.5, 1, 0.125, 0.5),
        (0, -0.5, 1, 0.125, -0.5),
        (0, 1, 1, 0.5, 1),
        (0, -3, 1, 2.5, -1),
        (5, 3, 1, 1.5, -1),
        (0, 0.25, 0.5, 0.0625, 0.5),
        (0, 0.5, 0.5, 0.25, 1),
        (0, 1, 0.5, 0.75, 1),
        (0, 1, 2, 0.25, 0.5),
        (0, 1e30, 1, 1e30, 1),
    ],
)
def test_smooth_l1_by_hand(target, prediction, beta, loss, slope):
    prediction = tf.Variable([float(prediction)])
    with tf.GradientTape() as tape:
        value = losses.smooth_l1([float(target)], prediction, beta)
    np.testing.assert_allclose(value, [loss], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, prediction), [slope], rtol=1e-6)


def test_smooth_l1_is_elementwise_and_in_float32():
    target = np.zeros((2, 3, 4), np.float16)
    loss = losses.smooth_l1(target, tf.fill((2, 3, 4), tf.constant(300, tf.bfloat16)))
    assert loss.dtype == tf.float32
    np.testing.assert_array_equal(loss, np.full((2, 3, 4), 299.5))


def cross_entropy(labels, logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_softmax, labels[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("shape", [(7,), (2, 5), (0,)])
@pytest.mark.parametrize("spread", [1, 30, 1000])
def test_softmax_cross_entropy_is_minus_log_softmax(shape, spread):
    random = np.random.default_rng(0)
    logits = random.normal(scale=spread, size=(*shape, 4)).astype(np.float32)
    labels = random.integers(0, 4, shape)
    loss = losses.softmax_cross_entropy(labels, logits)
    assert loss.shape == shape
    np.testing.assert_allclose(loss, cross_entropy(labels, logits), rtol=1e-5, atol=1e-6)


def test_softmax_cross_entropy_by_hand():
    logits = np.log(np.float32([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(losses.softmax_cross_entropy([0, 2], logits), -np.log([0.2, 0.5]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_softmax_cross_entropy_of_half_precision_is_computed_in_float32(dtype):
    logits = tf.constant([[1, -2, 0.5, 1.25], [-60, 60, 0, 0]], dtype)  # exact in either type
    loss = losses.softmax_cross_entropy(np.array([0, 0]), logits)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, cross_entropy(np.array([0, 0]), logits.numpy().astype(np.float32)), rtol=1e-6)


def test_softmax_cross_entropy_has_a_finite_gradient():
    logits = tf.Variable([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = losses.softmax_cross_entropy(np.array([1, 1]), logits)
    np.testing.assert_allclose(loss, [2e4, np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, logits), [[1, -1, 0], [1 / 3, -2 / 3, 1 / 3]], rtol=1e-5)


def loss_and_slope(loss, logits):
    """float32 `logits` -> the loss of them, and the gradient of its sum."""
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(logits)
    return value.numpy(), tape.gradient(value, logits).numpy()


LOG2, LOG3 = np.log(2), np.log(3)  # a logit of log 3 is a probability of 3/4
# Target, logit -> loss, and slope: the probability minus the target.
SIGMOID_CROSS_ENTROPY = [
    (1, 0, LOG2, -0.5),
    (0, 0, LOG2, 0.5),
    (1, LOG3, np.log(4 / 3), -0.25),
    (0, LOG3, np.log(4), 0.75),
    (1, -LOG3, np.log(4), -0.75),
    (0, -LOG3, np.log(4 / 3), 0.25),
    (1, 100, 0, 0),
    (0, 100, 100, 1),
    (1, -100, 100, -1),
    (0, -100, 0, 0),
    (0, 1e30, 1e30, 1),
    (1, 1e30, 0, 0),
    (0.5, LOG3, (np.log(4 / 3) + np.log(4)) / 2, 0.25),
]


@pytest.mark.parametrize(("target", "logit", "loss", "slope"), SIGMOID_CROSS_ENTROPY)
def test_sigmoid_cross_entropy_by_hand(target, logit, loss, slope):
    value, gradient = loss_and_slope(lambda logits: losses.sigmoid_cross_entropy([target], logits), [logit])
    np.testing.assert_allclose(value, [loss], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-6, atol=1e-30)


def test_sigmoid_cross_entropy_is_elementwise_and_in_float32():
    """Of targets that are the answer to a question, too."""
    labels = np.array([[3, -1], [-2, 0]])
    loss = losses.sigmoid_cross_entropy(labels >= 0, tf.constant([[100, 100], [-100, -100]], tf.bfloat16))
    assert loss.dtype == tf.float32
    np.testing.assert_array_equal(loss, [[0, 100], [0, 100]])


# Label, logits, alpha, gamma -> loss.
FOCAL = {
    "its own class": (0, [LOG3], 0.25, 2, 0.25 * (1 / 16) * np.log(4 / 3)),
    "not its class": (-1, [LOG3], 0.25, 2, 0.75 * (9 / 16) * np.log(4)),
    "its own class, unlikely": (0, [-LOG3], 0.25, 2, 0.25 * (9 / 16) * np.log(4)),
    "not its class, unlikely": (-1, [-LOG3], 0.25, 2, 0.75 * (1 / 16) * np.log(4 / 3)),
    "the usual alpha and gamma": (0, [LOG3], None, None, 0.25 * (1 / 16) * np.log(4 / 3)),
    "summed over the classes": (1, [0, LOG3, -LOG3], 0.25, 2, 3 / 16 * LOG2 + (1 / 64 + 3 / 64) * np.log(4 / 3)),
    "background is no class": (-1, [0, LOG3], 0.25, 2, 3 / 16 * LOG2 + 27 / 64 * np.log(4)),
    "neither is what is ignored": (-2, [0, LOG3], 0.25, 2, 3 / 16 * LOG2 + 27 / 64 * np.log(4)),
    "another gamma": (0, [LOG3, LOG3], 0.25, 1, 0.25 * (1 / 4) * np.log(4 / 3) + 0.75 * (3 / 4) * np.log(4)),
    "another alpha": (0, [LOG3, LOG3], 0.75, 2, 0.75 * (1 / 16) * np.log(4 / 3) + 0.25 * (9 / 16) * np.log(4)),
    "gamma 0 is half the cross-entropy": (0, [LOG3, LOG3], 0.5, 0, (np.log(4 / 3) + np.log(4)) / 2),
    "right and sure": (0, [100, -100], 0.25, 2, 0),
    "wrong and sure": (0, [-100, 100], 0.25, 2, 0.25 * 100 + 0.75 * 100),
    "sure that it is an object": (-1, [100, -100], 0.25, 2, 0.75 * 100),
    "surer than float32 can tell": (1, [1e4, -1e4, 0], 0.25, 2, 1e4 * (0.75 + 0.25) + 3 / 16 * LOG2),
}


@pytest.mark.parametrize(("label", "logits", "alpha", "gamma", "expected"), FOCAL.values(), ids=FOCAL)
def test_sigmoid_focal_by_hand(label, logits, alpha, gamma, expected):
    options = {} if alpha is None else {"alpha": alpha, "gamma": gamma}
    loss = losses.sigmoid_focal(np.array([label]), np.float32([logits]), **options)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, [expected], rtol=1e-5, atol=1e-20)


# Label, logits -> slopes. Of another class, p^2 softplus(x), it is 2 p^2 (1 - p) softplus(x) + p^3.
FOCAL_SLOPES = {
    "undecided": (0, [0, 0], [-0.25 * (LOG2 / 4 + 1 / 8), 0.75 * (LOG2 / 4 + 1 / 8)]),
    "right and sure": (0, [100, -100], [0, 0]),
    "wrong and sure": (0, [-100, 100], [-0.25, 0.75]),
    "background": (-1, [100, -100], [0.75, 0]),
    "surer than float32 can tell": (1, [1e4, -1e4], [0.75, -0.25]),
}


@pytest.mark.parametrize(("label", "logits", "slopes"), FOCAL_SLOPES.values(), ids=FOCAL_SLOPES)
def test_slopes_of_sigmoid_focal(label, logits, slopes):
    _, gradient = loss_and_slope(lambda x: losses.sigmoid_focal(np.array([label]), x), [logits])
    np.testing.assert_allclose(gradient, [slopes], rtol=1e-5, atol=1e-20)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("label", [0, -1])
def test_sigmoid_focal_and_its_slope_are_finite_for_every_logit(label, gamma):
    logits = np.float32([-1e6, -200, -100, -87, -1e-6, 0, 1e-6, 87, 100, 200, 1e6])[:, None]
    value, gradient = loss_and_slope(lambda x: losses.sigmoid_focal(np.full(11, label), x, gamma=gamma), logits)
    assert np.isfinite(value).all() and (value >= 0).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(7,), (2, 5), (0,), (2, 0)])
@pytest.mark.parametrize("num_classes", [1, 4])
def test_sigmoid_focal_is_the_formula_of_the_paper(shape, num_classes):
    random = np.random.default_rng(0)
    logits = random.normal(scale=4, size=(*shape, num_classes))
    labels = random.integers(-2, num_classes, shape)
    own = labels[..., None] == np.arange(num_classes)
    p = 1 / (1 + np.exp(-logits))
    p, alpha = np.where(own, p, 1 - p), np.where(own, 0.25, 0.75)
    expected = (-alpha * (1 - p) ** 2 * np.log(p)).sum(axis=-1)
    loss = losses.sigmoid_focal(labels, logits.astype(np.float32))
    assert loss.shape == shape
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


def test_sigmoid_focal_of_half_precision_is_computed_in_float32():
    logits = tf.constant([[1.5, -2.25]], tf.bfloat16)  # exact
    loss = losses.sigmoid_focal(np.array([0]), logits)
    assert loss.dtype == tf.float32
    np.testing.assert_array_equal(loss, losses.sigmoid_focal(np.array([0]), np.float32([[1.5, -2.25]])))


# target, probability -> loss: -(1 - p)^2 log p at a point, -(1 - y)^4 p^2 log(1 - p) beside it and elsewhere
HEATMAP_FOCAL = {
    "a point": (1, 0.5, -0.25 * np.log(0.5)),
    "a point, found": (1, 0.9, -0.01 * np.log(0.9)),
    "a point, missed": (1, 0.1, -0.81 * np.log(0.1)),
    "nothing": (0, 0.5, -0.25 * np.log(0.5)),
    "nothing, and known": (0, 0.1, -0.01 * np.log(0.9)),
    "beside a point": (0.5, 0.5, -0.0625 * 0.25 * np.log(0.5)),
    "close to a point": (0.9, 0.8, -1e-4 * 0.64 * np.log(0.2)),
    "all but a point": (1 - 1e-6, 0.8, 0),
}


@pytest.mark.parametrize(("target", "probability", "expected"), HEATMAP_FOCAL.values(), ids=HEATMAP_FOCAL)
def test_heatmap_focal_by_hand(target, probability, expected):
    logit = np.float32([np.log(probability / (1 - probability))])
    np.testing.assert_allclose(losses.heatmap_focal([target], logit), [expected], rtol=1e-4, atol=1e-12)


def test_slopes_of_heatmap_focal_are_those_of_the_formula():
    random = np.random.default_rng(0)
    targets, logits = random.choice([0, 0.3, 0.9, 1], 200).astype(np.float32), random.normal(scale=3, size=200)

    def formula(logits):
        p = 1 / (1 + np.exp(-logits))
        beside = -((1 - targets.astype(float)) ** 4) * p**2 * np.log(1 - p)
        return np.where(targets == 1, -((1 - p) ** 2) * np.log(p), beside)

    value, slope = loss_and_slope(lambda x: losses.heatmap_focal(targets, x), logits)
    np.testing.assert_allclose(value, formula(logits), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slope, (formula(logits + 1e-5) - formula(logits - 1e-5)) / 2e-5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("target", [0, 0.5, 1 - 1e-7, 1])
def test_heatmap_focal_and_its_slope_are_finite_for_every_logit(target):
    logits = np.float32([-1e6, -200, -100, -87, -1e-6, 0, 1e-6, 87, 100, 200, 1e6])
    value, slope = loss_and_slope(lambda x: losses.heatmap_focal(np.full(11, target), x), logits)
    assert np.isfinite(value).all() and (value >= 0).all()
    assert np.isfinite(slope).all()
    # What is wrong beyond all measure is still pushed back, which the released code's limits would not do.
    wrong = {0: slope[-1], 1: -slope[0]}.get(target, 1)
    assert wrong > 0.99


def test_heatmap_focal_is_elementwise_and_in_float32():
    logits = tf.constant([[1.5, -2.25]], tf.bfloat16)  # exact
    loss = losses.heatmap_focal(np.float32([[1, 0.5]]), logits)
    assert (loss.dtype, loss.shape) == (tf.float32, (1, 2))
    np.testing.assert_array_equal(loss, losses.heatmap_focal(np.float32([[1, 0.5]]), np.float32([[1.5, -2.25]])))


# Distances of the target and of the prediction -> areas of intersection, union and the smallest box around both.
AROUND_A_POINT = {
    "alike": ((1, 2, 3, 4), (1, 2, 3, 4), 24, 24, 24),
    "one inside the other": ((2, 2, 2, 2), (1, 1, 1, 1), 4, 16, 16),
    "the other way round": ((1, 1, 1, 1), (2, 2, 2, 2), 4, 16, 16),
    "shifted": ((1, 1, 3, 1), (3, 1, 1, 1), 4, 12, 12),
    "in two directions": ((1, 1, 3, 3), (3, 3, 1, 1), 4, 28, 36),
    "nothing": ((1, 2, 3, 4), (0, 0, 0, 0), 0, 24, 24),
    "nothing twice": ((0, 0, 0, 0), (0, 0, 0, 0), 0, 0, 0),
    "large": ((500, 500, 500, 500), (400, 500, 500, 500), 9e5, 1e6, 1e6),
}


@pytest.mark.parametrize(
    ("target", "prediction", "intersection", "union", "enclosing"), AROUND_A_POINT.values(), ids=AROUND_A_POINT
)
def test_iou_losses_by_hand(target, prediction, intersection, union, enclosing):
    iou = (intersection + 1) / (union + 1)
    loss = losses.iou_loss(np.float32([target]), np.float32([prediction]))
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, [-np.log(iou)], rtol=1e-5, atol=1e-6)
    if enclosing:
        loss = losses.giou_loss(np.float32([target]), np.float32([prediction]))
        np.testing.assert_allclose(loss, [1 - iou + (enclosing - union) / enclosing], rtol=1e-5, atol=1e-6)


def test_the_generalised_iou_is_that_of_boxes():
    """For large boxes, of which one pixel more or less is little."""
    random = np.random.default_rng(0)
    target, prediction = random.uniform(0, 1e4, (2, 50, 4)).astype(np.float32)
    a, b = (np.concatenate([-distances[:, :2], distances[:, 2:]], axis=-1) for distances in (target, prediction))
    expected = 1 - np.diagonal(box_ops.giou(a, b))
    np.testing.assert_allclose(losses.giou_loss(target, prediction), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.iou_loss, losses.giou_loss])
def test_iou_losses_and_their_slopes_are_finite(loss):
    random = np.random.default_rng(0)
    for low, high in ((0, 0), (0, 1), (0, 1e3), (1e3, 1e8)):
        target, prediction = random.uniform(low, high, (2, 3, 5, 4)).astype(np.float32)
        value, slope = loss_and_slope(lambda x, target=target: loss(target, x), prediction)
        assert value.shape == (3, 5)
        assert np.isfinite(value).all() and np.isfinite(slope).all()


def test_slopes_of_iou_losses_lead_to_the_target():
    target, prediction = np.float32([(4, 4, 4, 4)]), np.float32([(3, 5, 4.5, 2)])
    for loss in (losses.iou_loss, losses.giou_loss):
        _, slope = loss_and_slope(lambda x, loss=loss: loss(target, x), prediction)
        np.testing.assert_array_equal(np.sign(slope), np.sign(prediction - target))


def test_iou_losses_of_half_precision_are_computed_in_float32():
    target, prediction = (tf.constant([(300, 300, 300, 300 + n)], tf.float16) for n in (0, 1))
    for loss in (losses.iou_loss, losses.giou_loss):
        exact = loss(tf.cast(target, tf.float32), tf.cast(prediction, tf.float32))
        np.testing.assert_array_equal(loss(target, prediction), exact)
        assert np.isfinite(exact)


# embeddings of both corners of up to three objects, and which of these there are -> pull, push
EMBEDDINGS = {
    "no object": ([], 0, 0),
    "one, corners alike": ([(3, 3)], 0, 0.9999),
    "one, corners 1 apart": ([(3, 4)], 2 * 0.25, 0.9999),
    "two, far apart": ([(0, 0.5), (3, 3)], 2 * 0.0625 / 2, 0),
    "two, half a unit apart": ([(0, 0), (0, 1)], 2 * 0.25 / 2, 0.5),
    "two, at one place": ([(2, 2), (2, 2)], 0, 1),
    "three, of which two are near": ([(0, 0), (0.25, 0.25), (9, 9)], 0, 2 * 0.75 / 6),
}


@pytest.mark.parametrize(("embeddings", "pull", "push"), EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_pull_and_push_by_hand(embeddings, pull, push):
    """To the 1e-4 that the released code adds to its denominators; the second image has no object."""
    tags, valid = np.full((2, 4, 2), 7, np.float32), np.zeros((2, 4))
    for place, embedding in zip((0, 2, 3), embeddings, strict=False):
        tags[0, place], valid[0, place] = embedding, 1
    found = losses.pull_and_push(tags[..., 0], tags[..., 1], valid)
    np.testing.assert_allclose(found, [(pull, 0), (push, 0)], atol=2e-3)
