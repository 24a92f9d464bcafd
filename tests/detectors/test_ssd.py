import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet import backbones
from tfdet.anchors import PriorBox
from tfdet.coders import DeltaXYWH
from tfdet.detectors.ssd import SSD, SSDDecoder, SSDLoss, SSDTargetEncoder, ssd300, ssd512
from tfdet.errors import NonFiniteLossError

STDS = (0.1, 0.1, 0.2, 0.2)
TINY = 64  # pixels a side


def tiny_ssd(class_names=2):
    """Three levels of 8, 4 and 2 cells."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 64, -2)(image)
    c3 = keras.layers.Conv2D(8, 9, 8, padding="same", activation="relu")(x)
    c4 = keras.layers.Conv2D(8, 3, 2, padding="same", activation="relu")(c3)
    backbone = keras.Model(image, {"C3": c3, "C4": c4})
    priors = [PriorBox(8, 16, (2,), 8), PriorBox(16, 32, (2,), 16), PriorBox(32, 50, (2,), 32)]
    return SSD(backbone, class_names, TINY, priors, [(4, 8, 3, 2, 1)])


@pytest.fixture(scope="module")
def tiny():
    keras.utils.set_random_seed(0)
    return tiny_ssd()


def tiny_batch(model, size=4):
    images = np.random.default_rng(0).uniform(0, 255, (size, TINY, TINY, 3)).astype(np.float32)
    targets = [model.encoder(np.float32([[4, 4, 30, 30 + n]]), np.int32([n % 2])) for n in range(size)]
    return images, {name: np.stack([one[name] for one in targets]) for name in targets[0]}


# --- the published settings ---


def level_maps(model):
    side = model.settings["image_size"]
    levels = model.neck(model.backbone(keras.Input((side, side, 3))))
    assert all(level.shape[1] == level.shape[2] for level in levels)
    return [level.shape[1] for level in levels]


def around(x, y, width, height):
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@pytest.fixture(scope="module")
def slim300():
    return ssd300(3, "vgg_slim")


@pytest.fixture(scope="module")
def slim512():
    return ssd512(("a", "b", "c"), "vgg_slim")


def test_ssd300_has_8732_priors(slim300):
    assert level_maps(slim300) == [38, 19, 10, 5, 3, 1]
    levels = zip(slim300.settings["priors"], level_maps(slim300), strict=True)
    per_level = [prior.num_priors * cells**2 for prior, cells in levels]
    assert per_level == [5776, 2166, 600, 150, 36, 4]
    assert slim300.priors.shape == (8732, 4)
    ends = np.cumsum([0, *per_level])
    np.testing.assert_allclose(slim300.priors[0], around(4, 4, 30, 30))
    np.testing.assert_allclose(slim300.priors[ends[1]], around(8, 8, 60, 60))
    np.testing.assert_allclose(slim300.priors[ends[2]], around(16, 16, 111, 111))
    np.testing.assert_allclose(slim300.priors[ends[3]], around(32, 32, 162, 162))
    np.testing.assert_allclose(slim300.priors[ends[4]], around(50, 50, 213, 213))
    np.testing.assert_allclose(slim300.priors[ends[5]], around(150, 150, 264, 264))
    np.testing.assert_allclose(slim300.priors[ends[5] + 1], around(150, 150, *[np.sqrt(264 * 315)] * 2), rtol=1e-6)
    # The last of conv4_3: cell (37, 37), ratio 1/2. Its centre lies where code and paper differ, 300 * 37.5 / 38.
    np.testing.assert_allclose(slim300.priors[5775], around(300, 300, 30 / 2**0.5, 30 * 2**0.5), rtol=1e-6)


def test_ssd512_has_24564_priors(slim512):
    assert level_maps(slim512) == [64, 32, 16, 8, 4, 2, 1]
    levels = zip(slim512.settings["priors"], level_maps(slim512), strict=True)
    per_level = [prior.num_priors * cells**2 for prior, cells in levels]
    assert per_level == [16384, 6144, 1536, 384, 96, 16, 4]
    assert slim512.priors.shape == (24564, 4)
    np.testing.assert_allclose(slim512.priors[0], around(4, 4, 35.84, 35.84), rtol=1e-6)
    np.testing.assert_allclose(slim512.priors[-4], around(256, 256, 460.8, 460.8), rtol=1e-6)
    assert slim512.class_names == ("a", "b", "c")
    # As in Caffe, the last convolution sees the 2 x 2 map and its border as a whole.
    assert slim512.neck.blocks[-1].layers[-1].kernel.shape[:2] == (4, 4)


def test_the_raw_outputs_have_a_row_for_each_prior(slim300):
    assert slim300.class_names == ("0", "1", "2")
    outputs = slim300.compute_output_spec(keras.Input((300, 300, 3)))
    assert {name: value.shape for name, value in outputs.items()} == {
        "class_logits": (None, 8732, 4),
        "box_deltas": (None, 8732, 4),
    }


def test_coco_priors_are_smaller():
    image = keras.Input((None, None, 3))
    shallow = keras.Model(
        image,
        {"C3": keras.layers.AveragePooling2D(8, padding="same")(image)}
        | {"C4": keras.layers.AveragePooling2D(16, padding="same")(image)},
    )
    for build, kind, first, last in [(ssd300, "coco", 21, 261), (ssd512, "coco", 20.48, 460.8)]:
        sizes = [prior.min_size for prior in build(1, shallow, priors=kind).settings["priors"]]
        np.testing.assert_allclose((sizes[0], sizes[-1]), (first, last))


def test_a_backbone_that_reaches_stride_32_has_one_extra_level_less():
    image = keras.Input((None, None, 3))
    deep = keras.Model(
        image, {f"C{n}": keras.layers.AveragePooling2D(2**n, padding="same")(image) for n in (2, 3, 4, 5)}
    )
    model = ssd300(1, deep)
    assert level_maps(model) == [38, 19, 10, 5, 3, 1]
    assert len(model.neck.blocks) == 3


def test_ssd300_on_vgg16_is_the_published_network():
    """The number of parameters is that of torchvision's ssd300_vgg16(num_classes=21)."""
    model = ssd300(20)
    assert model.count_params() == 26_285_486
    names = ("conv4_3", "conv5_3", "conv6", "conv7")
    # [kernel, input, output], dilation
    convolutions = {name: model.backbone.get_layer(name) for name in names}
    assert {name: (*layer.kernel.shape[1:], layer.dilation_rate[0]) for name, layer in convolutions.items()} == {
        "conv4_3": (3, 512, 512, 1),
        "conv5_3": (3, 512, 512, 1),
        "conv6": (3, 512, 1024, 6),
        "conv7": (1, 1024, 1024, 1),
    }
    levels = model.neck(model.backbone(keras.Input((300, 300, 3))))
    assert [level.shape[1:] for level in levels] == [
        (38, 38, 512),
        (19, 19, 1024),
        (10, 10, 512),
        (5, 5, 256),
        (3, 3, 256),
        (1, 1, 256),
    ]
    assert [conv.filters for conv in model.head.class_convs] == [84, 126, 126, 126, 84, 84]
    assert [conv.filters for conv in model.head.box_convs] == [16, 24, 24, 24, 16, 16]
    np.testing.assert_allclose(model.backbone.get_layer("conv4_3_norm").scale, np.full(512, 20))


def test_priors_must_fit_the_levels():
    with pytest.raises(ValueError, match="6 feature levels, but prior boxes for 5"):
        extras = [(4, 8, 3, 2, 1)] * 4
        SSD(backbones.build("vgg_slim"), 2, 300, [PriorBox(8, 16, (2,), 8)] * 5, extras)


def test_the_head_counts_cell_by_cell_and_prior_by_prior(tiny):
    """One number in one place of one level moves just the outputs of the priors around that cell."""
    levels = [np.zeros((1, cells, cells, 8), np.float32) for cells in (8, 4, 2)]
    before = tiny.head(levels)
    levels[1][0, 3, 0] = 1  # a corner: cells (2..3, 0..1) see it
    after = tiny.head(levels)
    centres = (tiny.priors[:, :2] + tiny.priors[:, 2:]) / 2
    level = np.repeat([0, 1, 2], [256, 64, 16])
    near = (level == 1) & (centres[:, 0] < 32) & (centres[:, 1] > 32)
    assert near.sum() == 16
    for name in before:
        moved = (np.array(before[name]) != np.array(after[name])).any(axis=-1)[0]
        np.testing.assert_array_equal(moved, near)


# --- targets ---

PRIORS = np.float32([(0, 0, 10, 10), (10, 0, 20, 10), (0, 10, 10, 20), (10, 10, 20, 20)])


def test_targets_by_hand():
    encoder = SSDTargetEncoder(PRIORS, DeltaXYWH(STDS))
    boxes = np.float32([(11, 12, 21, 22), (0, 0, 10, 20)])  # the second has IoU 1/2 with priors 0 and 2
    targets = encoder(boxes, np.array([4, 7]))
    assert targets["labels"].dtype == tf.int32 and targets["box_deltas"].dtype == tf.float32
    np.testing.assert_array_equal(targets["labels"], [7, -1, 7, 4])
    log2 = np.log(2) / 0.2
    expected = [(0, 5, 0, log2), (0, -5, 0, log2), (1, 2, 0, 0)]
    np.testing.assert_allclose(np.array(targets["box_deltas"])[[0, 2, 3]], expected, rtol=1e-5, atol=1e-5)
    assert targets["box_deltas"].shape == (4, 4) and np.isfinite(targets["box_deltas"]).all()


def test_targets_are_what_the_coder_encodes(tiny):
    random = np.random.default_rng(0)
    corners = random.uniform(0, 40, (5, 2))
    boxes = np.hstack([corners, corners + random.uniform(5, 24, (5, 2))]).astype(np.float32)
    labels = np.arange(5)
    targets = tiny.encoder(boxes, labels)
    found = np.array(targets["labels"])
    assert set(found) == {-1, 0, 1, 2, 3, 4}
    positive = found >= 0
    expected = DeltaXYWH(STDS).encode(tiny.priors[positive], boxes[found[positive]])
    np.testing.assert_allclose(np.array(targets["box_deltas"])[positive], expected, rtol=1e-5)


@pytest.mark.parametrize("labels", [np.zeros(0, np.int32), np.zeros(0, np.int64)])
def test_targets_without_boxes_are_all_negative(labels):
    targets = SSDTargetEncoder(PRIORS, DeltaXYWH(STDS))(np.zeros((0, 4), np.float32), labels)
    np.testing.assert_array_equal(targets["labels"], [-1] * 4)
    assert targets["box_deltas"].shape == (4, 4) and np.isfinite(targets["box_deltas"]).all()


def test_targets_the_threshold_is_an_argument():
    boxes, labels = np.float32([(0, 0, 10, 20)]), np.array([0])
    targets = SSDTargetEncoder(PRIORS, DeltaXYWH(STDS), iou=0.51)(boxes, labels)
    np.testing.assert_array_equal(targets["labels"], [0, -1, -1, -1])


# --- loss ---


def logits(*background):
    """Of background, whose probability is given, and two classes, which get a quarter and the rest of what is left."""
    return np.log([[(p, (1 - p) / 4, (1 - p) * 3 / 4) for p in row] for row in background]).astype(np.float32)


def test_loss_by_hand():
    """Image 0 has a positive and four negatives, of which the three costliest count; image 1 has none at all."""
    targets = {
        "labels": np.int32([[1, -1, -1, -1, -1], [-1] * 5]),
        "box_deltas": np.full((2, 5, 4), 9, np.float32),
    }
    targets["box_deltas"][0, 0] = (0.5, 0, -2, 0)
    outputs = {
        "class_logits": logits([0.2, 0.9, 0.5, 0.7, 0.6], [0.1] * 5),
        "box_deltas": np.zeros((2, 5, 4), np.float32),
    }
    parts = SSDLoss()(targets, outputs)
    assert tuple(parts) == SSDLoss.parts
    np.testing.assert_allclose(parts["class"], -np.log(0.6 * 0.5 * 0.6 * 0.7), rtol=1e-5)
    np.testing.assert_allclose(parts["box"], 0.125 + 1.5, rtol=1e-6)
    one_negative = SSDLoss(negatives_per_positive=1)(targets, outputs)
    np.testing.assert_allclose(one_negative["class"], -np.log(0.6 * 0.5), rtol=1e-5)


def test_loss_is_divided_by_the_positives_of_the_whole_batch():
    """Two positives in one image, one in the other: each image takes its own negatives, the sum is over three."""
    targets = {"labels": np.int32([[0, 1, -1], [0, -1, -1]]), "box_deltas": np.ones((2, 3, 4), np.float32)}
    outputs = {
        "class_logits": logits([0.2, 0.4, 0.9], [0.6, 0.5, 0.3]),
        "box_deltas": np.zeros((2, 3, 4), np.float32),
    }
    parts = SSDLoss(negatives_per_positive=1)(targets, outputs)
    np.testing.assert_allclose(parts["class"], -np.log(0.2 * 0.45 * 0.9 * 0.1 * 0.3) / 3, rtol=1e-5)
    np.testing.assert_allclose(parts["box"], 3 * 4 * 0.5 / 3, rtol=1e-6)


def test_loss_without_any_positive_is_nothing():
    targets = {"labels": np.full((2, 4), -1, np.int32), "box_deltas": np.ones((2, 4, 4), np.float32)}
    outputs = {"class_logits": tf.zeros((2, 4, 3)), "box_deltas": tf.zeros((2, 4, 4))}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        parts = SSDLoss()(targets, outputs)
        total = parts["class"] + parts["box"]
    assert total == 0
    gradients = tape.gradient(total, outputs)
    assert all((gradient.numpy() == 0).all() for gradient in gradients.values())


def test_gradient_of_the_loss_by_hand():
    targets = {"labels": np.int32([[1, -1, -1, 0]]), "box_deltas": np.zeros((1, 4, 4), np.float32)}
    targets["box_deltas"][0, 3] = np.nan  # an overflow, as long as it is in the background
    targets["labels"][0, 3] = -1
    outputs = {
        "class_logits": tf.constant(logits([0.2, 0.5, 0.9, 0.8])),
        "box_deltas": tf.constant([[[0.5, -3, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, 0]]], tf.float32),
    }
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        parts = SSDLoss(negatives_per_positive=2)(targets, outputs)
        total = parts["class"] + parts["box"]
    gradients = tape.gradient(total, outputs)
    expected = [[(0.2, 0.2, -0.4), (-0.5, 0.125, 0.375), (0, 0, 0), (-0.2, 0.05, 0.15)]]
    np.testing.assert_allclose(gradients["class_logits"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients["box_deltas"][0, :3], [(0.5, -1, 0, 0), (0,) * 4, (0,) * 4])


# --- detections ---


def perfect_outputs(model, boxes, labels):
    targets = model.encoder(np.float32(boxes), np.int32(labels))
    classes = 20 * np.eye(model.num_classes + 1, dtype=np.float32)[np.array(targets["labels"]) + 1]
    return {"class_logits": classes[None], "box_deltas": np.array(targets["box_deltas"])[None]}


def test_perfect_outputs_give_the_truth_back(tiny):
    boxes = [(3, 5, 20, 24), (30, 8, 60, 50), (0, 40, 25, 64), (5, 6, 21, 23)]  # the first and last overlap much
    labels = [0, 1, 0, 1]
    found = {name: value.numpy()[0] for name, value in tiny.decoder(perfect_outputs(tiny, boxes, labels)).items()}
    assert found["num_detections"] == 4
    assert found["boxes"].shape == (200, 4)
    rows = np.hstack([found["boxes"], found["labels"][:, None]])[:4]
    expected = np.hstack([boxes, np.array(labels)[:, None]])
    np.testing.assert_allclose(rows[np.lexsort(rows.round(1).T)], expected[np.lexsort(expected.T)], atol=0.02)
    np.testing.assert_allclose(found["scores"][:4], np.ones(4), rtol=1e-5)


def test_nothing_but_background_gives_no_detections(tiny):
    outputs = perfect_outputs(tiny, np.zeros((0, 4)), np.zeros(0))
    assert tiny.decoder(outputs)["num_detections"].numpy().tolist() == [0]


def test_detections_are_clipped_to_the_image_and_settings_are_those_of_the_paper():
    decoder = SSDDecoder(np.float32([(0, 0, 10, 10), (10, 10, 20, 20)]), DeltaXYWH(STDS), image_size=15)
    assert (decoder.score_threshold, decoder.iou_threshold, decoder.pre_nms, decoder.keep) == (0.01, 0.45, 400, 200)
    deltas = np.float32([[(-2, 0, 0, 0), (0, 0, 0, 0)]])
    found = decoder({"class_logits": np.log([[(0.2, 0.8), (0.4, 0.6)]]).astype(np.float32), "box_deltas": deltas})
    np.testing.assert_allclose(found["boxes"][0, :2], [(0, 0, 8, 10), (10, 10, 15, 15)], rtol=1e-5)
    np.testing.assert_allclose(found["scores"][0, :2], [0.8, 0.6], rtol=1e-5)


def test_predict_gives_boxes_in_pixels_of_the_images_it_is_given(tiny):
    images = np.random.default_rng(0).uniform(0, 255, (3, 50, 160, 3)).astype(np.float32)
    found = tiny.predict(images, verbose=0)
    fed = tiny.decoder(tiny(tiny.resizer(images)))
    assert found["boxes"].dtype == np.float32 and found["labels"].dtype == np.int32
    np.testing.assert_allclose(found["boxes"], fed["boxes"] * np.tile([160 / TINY, 50 / TINY], 2), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found["scores"], fed["scores"], rtol=1e-4)
    assert found["boxes"][..., 2].max() > 100 and found["boxes"][..., 3].max() <= 50.001


# --- training ---


def test_a_loss_of_ones_own_is_refused(tiny):
    with pytest.raises(ValueError, match="a detector brings its own loss"):
        tiny_ssd().compile("sgd", loss="mse")


def test_sample_weights_are_refused():
    model = tiny_ssd()
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="detectors take no sample weights"):
        model.fit(*tiny_batch(model), sample_weight=np.ones(4), verbose=0)


def test_parts_of_the_loss_are_logged_and_add_up(tiny):
    model = tiny_ssd()
    model.compile(keras.optimizers.SGD(0.0))
    images, targets = tiny_batch(model)
    # Batches of 3 and 1: each part is a mean over the batches, weighted by their images, as the loss is.
    history = model.fit(images, targets, batch_size=3, verbose=0, shuffle=False).history
    assert set(history) == {"loss", "class_loss", "box_loss"}
    np.testing.assert_allclose(history["loss"][0], history["class_loss"][0] + history["box_loss"][0], rtol=1e-5)
    parts = [
        model.detection_loss({k: v[s] for k, v in targets.items()}, model(images[s], training=False))
        for s in (slice(0, 3), slice(3, 4))
    ]
    for name in SSDLoss.parts:
        expected = (3 * parts[0][name] + parts[1][name]) / 4
        np.testing.assert_allclose(history[f"{name}_loss"][0], expected, rtol=1e-4)
    assert set(model.evaluate(images, targets, verbose=0, return_dict=True)) == set(history)


def test_penalties_of_weights_are_part_of_the_loss():
    model = tiny_ssd()
    images, targets = tiny_batch(model)
    outputs = model(images, training=True)
    before = model.compute_loss(images, targets, outputs)
    kernel = model.head.box_convs[0].kernel
    kernel.regularizer = keras.regularizers.L2(0.25)
    after = model.compute_loss(images, targets, outputs)
    np.testing.assert_allclose(after - before, 0.25 * np.sum(np.square(kernel)), rtol=1e-3)


def fit_until_it_stops(model, targets=None):
    """The message, and the steps that a callback of one's own has seen."""
    model.compile(keras.optimizers.SGD(1e-3))
    images, good_targets = tiny_batch(model)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    with pytest.raises(NonFiniteLossError) as error:
        model.fit(images, targets or good_targets, batch_size=2, shuffle=False, verbose=0, callbacks=[watch])
    return str(error.value), seen


def test_a_class_loss_that_is_not_finite_ends_training():
    model = tiny_ssd()
    bias = model.head.class_convs[0].bias
    bias.assign(np.full(bias.shape, np.nan))
    message, seen = fit_until_it_stops(model)
    assert message == "step 1 of this epoch: class_loss is nan; training stopped"
    assert seen == []  # it is the first callback: no other can save what is broken


def test_a_box_loss_that_is_not_finite_ends_training():
    model = tiny_ssd()
    _, targets = tiny_batch(model)
    targets["box_deltas"][2:] = np.inf
    message, seen = fit_until_it_stops(model, targets)
    assert message == "step 2 of this epoch: box_loss is inf; training stopped"
    assert seen == [0]


@pytest.mark.parametrize("callbacks", [None, keras.callbacks.History(), [keras.callbacks.History()]])
def test_fit_takes_callbacks_as_keras_does(tiny, callbacks):
    model = tiny_ssd()
    model.compile("sgd", run_eagerly=True)
    history = model.fit(*tiny_batch(model), callbacks=callbacks, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_it_trains_under_xla_and_predicts_without(monkeypatch):
    keras.utils.set_random_seed(0)
    model = tiny_ssd()
    images, targets = tiny_batch(model)
    expected = model.predict(images, verbose=0)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=True)
    assert model.jit_compile
    compiled = model.fit(images, targets, verbose=0).history
    found = model.predict(images, verbose=0)
    assert model.jit_compile
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-3)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    compute_loss, traced = type(model).compute_loss, []
    monkeypatch.setattr(
        type(model), "compute_loss", lambda *args, **kwargs: traced.append(0) or compute_loss(*args, **kwargs)
    )
    plain = model.fit(images, targets, verbose=0).history
    np.testing.assert_allclose(compiled["loss"], plain["loss"], rtol=1e-4)
    assert len(traced) == 1, "a step is traced once, though the optimizer had no variables before it"
