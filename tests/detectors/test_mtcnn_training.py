"""What MTCNN's networks learn: the losses by hand, and that a network does learn its crops by heart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet.data.mtcnn_samples import LANDMARK, NAMES, NEGATIVE, PART, POSITIVE
from tfdet.detectors.mtcnn_networks import onet, pnet, rnet
from tfdet.detectors.mtcnn_training import Count, compile_network, hardest_cross_entropy, squared_distance


def cost(probability):
    """Logits by which the right answer, a face or none, has this probability."""
    return np.log([1 - probability, probability])


@pytest.mark.parametrize("shape", [(-1, 2), (-1, 1, 1, 2)])
def test_the_hardest_seven_of_ten_count(shape):
    right = np.arange(0.05, 1, 0.1)  # ten crops; the last three are easy
    kind = np.where(np.arange(10) % 2, POSITIVE, NEGATIVE)
    logits = [cost(p) if k == POSITIVE else cost(p)[::-1] for p, k in zip(right, kind, strict=True)]
    # Parts and landmark crops say nothing of it, however wrong the network is.
    kind, logits = np.append(kind, [PART, LANDMARK]), np.float32([*logits, (50, -50), (50, -50)])
    costs = hardest_cross_entropy(tf.constant(kind), tf.constant(logits.reshape(shape))).numpy()
    np.testing.assert_allclose(costs[:7], -np.log(right[:7]) * 12 / 7, rtol=1e-5)
    np.testing.assert_array_equal(costs[7:], 0)
    np.testing.assert_allclose(costs.mean(), -np.log(right[:7]).mean(), rtol=1e-5)


def test_a_batch_without_faces_costs_nothing():
    costs = hardest_cross_entropy(tf.constant([PART, LANDMARK]), tf.constant([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(costs, [0, 0])


def test_squared_distance():
    targets, outputs = tf.constant([[1.0, 2.0], [0.0, 0.0]]), tf.constant([[[[4.0, 6.0]]], [[[0.0, 0.5]]]])
    np.testing.assert_allclose(squared_distance(targets, outputs), [25, 0.25])


def test_count():
    count = Count(PART, name="parts")
    count.update_state(tf.constant([0, 2, 2, 1]), None)
    count.update_state(tf.constant([2, 3]), None)
    found = count.result()
    count.reset_state()
    assert float(found) == 3
    assert Count.from_config(count.get_config()).kind == PART


def batch(network, groups=3, seed=0):
    """A batch as `face_crops` gives it, in groups of seven."""
    random = np.random.RandomState(seed)
    side = {"pnet": 12, "rnet": 24, "onet": 48}[network.name]
    kind = np.array([NEGATIVE] * 3 + [POSITIVE, PART] + [LANDMARK] * 2, np.int32)
    kind = np.tile(kind, groups)
    crops = random.uniform(0, 255, (len(kind), side, side, 3)).astype(np.float32)
    of_box, of_landmarks = np.isin(kind, (POSITIVE, PART)), kind == LANDMARK
    targets = {
        "face": kind,
        "box": random.uniform(-0.3, 0.3, (len(kind), 4)).astype(np.float32) * of_box[:, None],
        "landmarks": random.uniform(0, 1, (len(kind), 10)).astype(np.float32) * of_landmarks[:, None],
    }
    weights = {"face": np.ones(len(kind)), "box": of_box * 3.5, "landmarks": of_landmarks * 3.5}
    return crops, targets, {name: weight.astype(np.float32) for name, weight in weights.items()}


@pytest.mark.parametrize(("network", "landmarks"), [(lambda: pnet(True), 0.5), (lambda: rnet(True), 0.5), (onet, 1.0)])
def test_the_loss_is_that_of_the_three_tasks(network, landmarks):
    network = network()
    compile_network(network, keras.optimizers.SGD(0.0))
    crops, targets, weights = batch(network)
    logs = network.train_on_batch(crops, targets, weights, return_dict=True)
    found = {name: np.reshape(value, (len(crops), -1)) for name, value in network(crops).items()}

    kind = targets["face"]
    probability = keras.ops.convert_to_numpy(keras.ops.softmax(found["face"]))
    costs = -np.log(np.where(kind == POSITIVE, probability[:, 1], probability[:, 0]))[np.isin(kind, (0, 1))]
    parts = {"face": np.sort(costs)[::-1][: int(0.7 * len(costs))].mean()}
    for name, kinds in (("box", (POSITIVE, PART)), ("landmarks", (LANDMARK,))):
        distances = ((found[name] - targets[name]) ** 2).sum(axis=1)
        parts[name] = distances[np.isin(kind, kinds)].mean()
    expected = parts["face"] + 0.5 * parts["box"] + landmarks * parts["landmarks"]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    for name, value in parts.items():
        np.testing.assert_allclose(logs[f"{name}_loss"], value, rtol=1e-4)
    assert [logs[f"face_{name}"] for name in NAMES.values()] == [9, 3, 3, 6]


def test_a_network_learns_crops_by_heart(seeded):
    network = rnet(landmarks=True)
    compile_network(network, keras.optimizers.Adam(3e-3))
    crops, targets, weights = batch(network)
    losses = [network.train_on_batch(crops, targets, weights, return_dict=True)["loss"] for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    face = np.argmax(network(crops)["face"], axis=-1)
    kind = targets["face"]
    np.testing.assert_array_equal(face[kind == POSITIVE], 1)
    np.testing.assert_array_equal(face[kind == NEGATIVE], 0)


def test_two_replicas_do_the_step_that_one_does(two_replicas):
    """Where their halves are equally hard: each finds the hardest crops of its own."""
    data = batch(pnet(True), groups=5)  # 0.7 of the 20 negatives and positives of a half is a whole number
    data = tuple(keras.tree.map_structure(lambda part: np.concatenate([part, part]), part) for part in data)
    weights = []
    for scope in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(3)
        with scope.scope():
            network = pnet(True)
            compile_network(network, keras.optimizers.SGD(0.01))
        network.fit(tf.data.Dataset.from_tensors(data), verbose=0, shuffle=False)
        weights.append(network.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
