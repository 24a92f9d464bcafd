import numpy as np
import pytest
import tensorflow as tf

from tfdet import skeleton
from tfdet.data import transforms
from tfdet.data.transforms import CenterNetAugmentation, Draw, RandomShortSide, SSDAugmentation

LIMITS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Chosen(Draw):
    """Draws that a test has chosen: every number is `part` of the way from low to high."""

    def __init__(self, part=0.0, chances=(), integer=0):
        super().__init__((0, 0))
        self.part, self.chances, self.chosen = part, list(chances), integer

    def uniform(self, low, high, shape=()):
        return tf.fill(shape, tf.constant(low + (high - low) * self.part, tf.float32))

    def normal(self, deviation, shape=()):
        return tf.fill(shape, tf.constant(deviation * self.part, tf.float32))

    def chance(self, probability):
        return tf.constant(self.chances.pop(0))

    def integer(self, high):
        return tf.constant(min(self.chosen, int(high) - 1))


def in_a_graph(augmentation):
    """Traced once for images of any size, as tf.data does it; returns numpy arrays."""
    specs = [((None, None, 3), tf.uint8), ((None, 4), tf.float32), ((None,), tf.int32), ((2,), tf.int32)]
    graph = tf.function(augmentation, [tf.TensorSpec(*spec) for spec in specs])
    return lambda *arguments: tuple(value.numpy() for value in graph(*arguments))


@pytest.fixture(scope="module")
def augment():
    """To images of 100 pixels a side."""
    return in_a_graph(SSDAugmentation(100))


@pytest.fixture(scope="module")
def scene():
    """A picture of noise with five boxes."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (120, 160, 3)).astype(np.uint8)
    boxes = np.float32([(10, 10, 60, 70), (70, 20, 150, 110), (30, 60, 50, 80), (0, 0, 160, 120), (100, 5, 110, 15)])
    return image, boxes, np.arange(5, dtype=np.int32)


# --- the whole ---


def test_the_same_seed_gives_the_same_result(augment, scene):
    for one, other in zip(augment(*scene, (3, 4)), augment(*scene, (3, 4)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_seed_gives_another_result(augment, scene):
    images = {augment(*scene, seed)[0].tobytes() for seed in [(0, 0), (1, 0), (0, 1), (2, 0), (3, 0)]}
    assert len(images) == 5


def test_what_comes_back_is_a_fed_image_with_boxes_inside(augment, scene):
    counts = set()
    for seed in range(40):
        image, boxes, labels = augment(*scene, (seed, 0))
        assert (image.shape, image.dtype) == ((100, 100, 3), np.float32)
        assert 0 <= image.min() < image.max() <= 255
        assert boxes.dtype == np.float32 and labels.dtype == np.int32
        assert len(boxes) == len(labels) == len(set(labels))
        assert (boxes >= 0).all() and (boxes <= 100).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        counts.add(len(boxes))
    assert 5 in counts and len(counts) >= 3


def test_without_boxes(augment, scene):
    for seed in range(10):
        image, boxes, labels = augment(scene[0], np.zeros((0, 4), np.float32), np.zeros(0, np.int32), (seed, 0))
        assert image.shape == (100, 100, 3)
        assert boxes.shape == (0, 4) and labels.shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (500, 7)])
def test_an_image_of_any_size_will_do(augment, shape):
    boxes = np.float32([(0, 0, shape[1], shape[0])])
    for seed in range(15):
        image, found, _ = augment(np.full((*shape, 3), 200, np.uint8), boxes, np.int32([0]), (seed, 0))
        assert image.shape == (100, 100, 3) and np.isfinite(image).all()
        assert len(found) <= 1 and (found >= 0).all() and (found <= 100).all()


def test_a_bright_object_is_where_its_box_says(augment):
    """Through expansion, crop, warp and flip. The grey of a distorted black and white picture stays grey and on its
    side of 80, and the canvas, which is not grey, shows where the picture is not."""
    image = np.zeros((400, 500, 3), np.uint8)
    x1, y1, x2, y2 = box = (120, 60, 330, 280)
    image[y1:y2, x1:x2] = 255
    checked = 0
    for seed in range(120):
        fed, boxes, _ = augment(image, np.float32([box]), np.int32([7]), (seed, 1))
        if len(boxes) == 0:
            continue
        bright = (np.ptp(fed, axis=-1) < 3) & (fed.mean(axis=-1) > 80)
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        extent = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(extent, boxes[0], atol=2, err_msg=f"seed {seed}")
        assert bright[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.98
        checked += 1
    assert checked > 100


def test_boxes_with_their_centre_in_the_window_stay_and_are_clipped(monkeypatch):
    """The image lies at (1/2, 0) .. (1, 1/2) of a canvas twice its size; the crop shows the middle of that."""
    monkeypatch.setattr(transforms, "expand", lambda draw: tf.constant([-1.0, 0.0, 1.0, 2.0]))
    monkeypatch.setattr(transforms, "iou_constrained_crop", lambda boxes, draw: tf.constant([0.25, 0.0, 0.75, 0.5]))
    image = np.full((100, 200, 3), 255, np.uint8)
    # The window is x -100 .. 100 and y 0 .. 100 of that image: 2 pixels become 1 in x, 1 stays 1 in y.
    boxes = {
        (20, 10, 60, 30): (60, 10, 80, 30),
        (60, 20, 140, 40): (80, 20, 100, 40),  # its centre is on the border
        (62, 20, 140, 40): None,
        (98, 0, 100, 100): (99, 0, 100, 100),
        (150, 0, 200, 50): None,
        (0, 0, 200, 100): (50, 0, 100, 100),
    }
    labels = np.arange(len(boxes), dtype=np.int32)
    expected = np.float32([box for box in boxes.values() if box])
    mirrored = np.stack([100 - expected[:, 2], expected[:, 1], 100 - expected[:, 0], expected[:, 3]], axis=1)
    cases = set()
    for seed in range(8):
        fed, found, kept = SSDAugmentation(100)(image, np.float32(list(boxes)), labels, (seed, 0))
        np.testing.assert_array_equal(kept, [0, 1, 3, 5])
        is_canvas = abs(fed.numpy() - SSDAugmentation.mean).max(axis=-1) < 1e-3
        at_left = bool(is_canvas[0, 0])
        np.testing.assert_array_equal(is_canvas, np.tile((np.arange(100) < 50) == at_left, (100, 1)))
        np.testing.assert_allclose(found, expected if at_left else mirrored, atol=1e-4)
        cases.add(at_left)
    assert cases == {True, False}


def test_boxes_are_kept_by_their_centre_for_every_seed(augment, scene):
    """The window follows from the same draws; where each box's centre lies is computed anew."""
    image, _, _ = scene
    random = np.random.default_rng(1)
    corners = random.uniform(0, (140, 100), (30, 2))
    boxes = np.hstack([corners, corners + random.uniform(2, 20, (30, 2))]).astype(np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / (160, 120)
    left_out = 0
    for seed in range(15):
        draw = Draw((seed, 0))
        canvas = transforms.expand(draw).numpy()
        size = canvas[2:] - canvas[:2]
        unit = boxes / np.float32([160, 120, 160, 120])
        crop = transforms.iou_constrained_crop((unit - np.tile(canvas[:2], 2)) / np.tile(size, 2), draw).numpy()
        low, high = canvas[:2] + crop[:2] * size, canvas[:2] + crop[2:] * size
        expected = np.flatnonzero(((centres >= low) & (centres <= high)).all(axis=1))
        _, _, labels = augment(image, boxes, np.arange(30, dtype=np.int32), (seed, 0))
        np.testing.assert_array_equal(labels, expected)
        left_out += len(expected) < 30
    assert left_out > 3


@pytest.mark.parametrize(
    "window", [(-3, -3, -2, -2), (1.5, 0, 2, 1), (0, -2, 1, -1), (-1, 0, 0, 1), (1, 1, 2, 2), (0.2, 1, 0.6, 1.7)]
)
def test_a_crop_of_nothing_but_canvas_works(window):
    image = np.full((20, 30, 3), 255, np.uint8)
    fed = SSDAugmentation(16)._show(image, tf.constant(window, tf.float32), Draw((0, 0))).numpy()
    assert fed.shape == (16, 16, 3)
    is_canvas = abs(fed - SSDAugmentation.mean).max(axis=-1) < 1e-3
    assert is_canvas.sum() >= 15 * 16  # all but at most one row or column at the border


def test_a_window_shows_its_part_of_the_image():
    ramp = np.zeros((40, 80, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(80)[None, :], np.arange(40)[:, None]
    draw = Chosen(chances=[False] * 5, integer=2)  # nearest, colours as they are
    fed = SSDAugmentation(20)._show(ramp, tf.constant([0.25, 0.0, 0.5, 0.5]), draw).numpy()
    np.testing.assert_allclose(fed[0, :, 0], np.arange(20, 40), atol=0.01)
    np.testing.assert_allclose(fed[:, 0, 1], np.arange(20), atol=0.01)


# --- expand ---


def test_the_canvas_is_one_to_four_times_as_large_and_holds_the_image():
    canvases = np.array([transforms.expand(Draw((seed, 0))) for seed in range(200)])
    ratio = canvases[:, 2] - canvases[:, 0]
    np.testing.assert_allclose(canvases[:, 3] - canvases[:, 1], ratio, rtol=1e-5)
    assert (canvases[:, :2] <= 0).all() and (canvases[:, 2:] >= 1 - 1e-6).all()
    assert 70 <= (ratio == 1).sum() <= 130
    assert (ratio >= 1).all() and 3.7 < ratio.max() <= 4
    # The place is drawn in x and y apart, from one end to the other.
    place = -canvases[ratio > 1.5, :2] / (ratio[ratio > 1.5, None] - 1)
    assert place.min() < 0.1 and place.max() > 0.9 and abs(np.corrcoef(place.T)[0, 1]) < 0.4


# --- crop ---


def best_iou(crop, boxes):
    top_left, bottom_right = np.maximum(crop[:2], boxes[:, :2]), np.minimum(crop[2:], boxes[:, 2:])
    intersection = np.maximum(bottom_right - top_left, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return (intersection / ((crop[2:] - crop[:2]).prod() + areas - intersection)).max()


def proposals(boxes, seed):
    """Every crop that one of them is drawn from."""
    found = []
    while True:
        draw = Draw((seed, 0))
        asked = []
        draw.integer = lambda high, asked=asked: asked.append(int(high)) or len(found)
        found.append(transforms.iou_constrained_crop(boxes, draw).numpy())
        if len(found) == asked[0]:
            return found


def test_crops_obey_their_constraints():
    boxes = np.float32([(0.05, 0.1, 0.95, 1.0), (0.2, 0.2, 0.3, 0.3)])
    complete, smallest, largest, flattest, below = 0, 1.0, 0.0, 1.0, 0
    for seed in range(25):
        found = proposals(boxes, seed)
        np.testing.assert_array_equal(found[0], (0, 0, 1, 1))
        crops = np.array(found[1:])
        assert (crops >= -1e-6).all() and (crops <= 1 + 1e-6).all()
        width, height = (crops[:, 2:] - crops[:, :2]).T
        scale, ratio = np.sqrt(width * height), width / height
        assert (scale >= 0.3 - 1e-6).all() and (scale <= 1 + 1e-6).all()
        assert (ratio >= 0.5 - 1e-5).all() and (ratio <= 2 + 1e-5).all()
        smallest, largest, flattest = min(smallest, *scale), max(largest, *scale), min(flattest, *ratio)
        below += best_iou(crops[-1], boxes) < 0.1  # the last sampler has no lower bound
        if len(found) == 7:
            complete += 1
            for crop, limit in zip(crops, LIMITS, strict=False):
                assert best_iou(crop, boxes) >= limit - 1e-5
    assert complete >= 5
    assert smallest < 0.4 and largest > 0.9 and flattest < 0.7


def test_a_sampler_without_success_proposes_nothing():
    """No crop, 0.3 of the side at least, has IoU 0.5 with a box this small; any crop will do for the last sampler."""
    tiny = np.float32([(0.4, 0.4, 0.5, 0.5)])
    for seed in range(5):
        found = proposals(tiny, seed)
        assert 2 <= len(found) <= 3  # IoU 0.1 is within reach
        assert all(best_iou(crop, tiny) >= 0.1 - 1e-6 for crop in found[1:-1])


def test_an_image_without_boxes_is_not_cropped():
    assert [list(crop) for crop in proposals(np.zeros((0, 4), np.float32), 0)] == [[0, 0, 1, 1]]


def test_every_proposal_is_drawn():
    boxes = np.float32([(0.0, 0.0, 1.0, 1.0)])
    whole = sum(
        transforms.iou_constrained_crop(boxes, Draw((s, 0))).numpy().tolist() == [0, 0, 1, 1] for s in range(60)
    )
    assert 2 <= whole <= 20  # a seventh is 8.6


# --- small parts ---


def test_windows_there_and_back():
    window = tf.constant([-1.0, 0.5, 3.0, 1.0])
    box = tf.constant([0.0, 0.5, 1.0, 0.75])
    inside = transforms.to_window(box[None], window)[0]
    np.testing.assert_allclose(inside, (0.25, 0, 0.5, 0.5))
    np.testing.assert_allclose(transforms.from_window(inside, window), box)


def test_flip_by_hand():
    image = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    boxes = np.float32([(0, 0, 1, 1), (1, 0, 4, 1)])
    same, same_boxes = transforms.flip(image, boxes, tf.constant(False))
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(same_boxes, boxes)
    mirrored, mirrored_boxes = transforms.flip(image, boxes, tf.constant(True))
    np.testing.assert_array_equal(mirrored[0, :, 0], (9, 6, 3, 0))
    np.testing.assert_array_equal(mirrored_boxes, [(3, 0, 4, 1), (0, 0, 3, 1)])
    assert transforms.flip(image, boxes[:0], tf.constant(True))[1].shape == (0, 4)


def test_half_of_all_images_are_mirrored(augment):
    """No boxes, so no crop; expansion leaves the darker half where it is."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    mirrored = 0
    for seed in range(60):
        fed, _, _ = augment(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), (seed, 2))
        bright = (np.ptp(fed, axis=-1) < 3) & (fed.mean(axis=-1) > 80)
        dark = (np.ptp(fed, axis=-1) < 3) & (fed.mean(axis=-1) < 60)
        mirrored += np.nonzero(bright)[1].mean() < np.nonzero(dark)[1].mean()
    assert 18 <= mirrored <= 42


def resized(image, size, method):
    return np.clip(tf.cast(tf.image.resize(image, size, method), tf.float32), 0, 255)


def test_all_five_interpolations_occur():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    methods = ("bilinear", "area", "nearest", "bicubic", "lanczos3")
    expected = {m: resized(image, (9, 4), m).tobytes() for m in methods}
    assert len(set(expected.values())) == 5
    found = [transforms.resize_randomly(image, (9, 4), Draw((seed, 0))).numpy().tobytes() for seed in range(60)]
    assert set(found) == set(expected.values())
    assert max(map(found.count, expected.values())) < 30


def test_resizing_does_not_leave_the_range_of_pixels():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    for integer in range(5):
        larger = transforms.resize_randomly(image, (20, 20), Chosen(integer=integer)).numpy()
        assert larger.dtype == np.float32 and larger.min() >= 0 and larger.max() <= 255


# contrast first, brightness, contrast, saturation, hue
KEEP, ALL = (False, False, False, False, False), (True, True, True, True, True)
LAST = (False, True, True, True, True)
COLOURS = {
    "as it is": (KEEP, 1.0, (250, 30, 99), (250, 30, 99)),
    "as it is, whatever is drawn": ((True, False, False, False, False), 0.0, (250, 30, 99), (250, 30, 99)),
    "brightest": ((False, True, False, False, False), 1.0, (250, 30, 99), (255, 62, 131)),
    "darkest": ((False, True, False, False, False), 0.0, (250, 30, 99), (218, 0, 67)),
    "highest contrast": ((False, False, True, False, False), 1.0, (200, 30, 100), (255, 45, 150)),
    "lowest contrast": ((True, False, True, False, False), 0.0, (200, 30, 100), (100, 15, 50)),
    "most colour": ((False, False, False, True, False), 1.0, (200, 150, 100), (200, 125, 50)),
    "least colour": ((False, False, False, True, False), 0.0, (200, 150, 100), (200, 175, 150)),
    "red turns to orange": ((False, False, False, False, True), 1.0, (255, 0, 0), (255, 153, 0)),  # 36 degrees
    "red turns to pink": ((False, False, False, False, True), 0.0, (255, 0, 0), (255, 0, 153)),
    "grey, all, lowest": (ALL, 0.0, (100, 100, 100), (34, 34, 34)),
    "grey, all, highest": (ALL, 1.0, (100, 100, 100), (198, 198, 198)),
    "clipped after contrast": (ALL, 0.0, (20, 20, 20), (0, 0, 0)),
    "clipped before contrast": (LAST, 1.0, (250, 250, 250), (255, 255, 255)),
    "contrast first, saturation clipped": ((True, False, True, True, False), 1.0, (240, 160, 80), (255, 232.5, 52.5)),
    "contrast last": ((False, False, True, True, False), 0.0, (240, 160, 80), (120, 100, 80)),
}


@pytest.mark.parametrize(("chances", "part", "pixel", "expected"), COLOURS.values(), ids=COLOURS)
def test_colours_by_hand(chances, part, pixel, expected):
    image = np.full((2, 2, 3), pixel, np.float32)
    distorted = transforms.distort_colours(tf.constant(image), Chosen(part, chances))
    np.testing.assert_allclose(distorted, np.full((2, 2, 3), expected), atol=0.05)


def test_colours_each_change_has_a_chance_of_one_half():
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.float32))
    distort = tf.function(lambda seed: transforms.distort_colours(image, Draw(seed)))
    results = [distort(tf.constant((seed, 0))).numpy() for seed in range(160)]
    unchanged = sum(np.abs(result - image).max() < 0.01 for result in results)
    assert 2 <= unchanged <= 24  # a sixteenth is 10
    assert all(result.min() >= 0 and result.max() <= 255 for result in results)


def test_draws_are_uniform_and_follow_from_the_seed_and_their_number():
    draw, again = Draw((1, 2)), Draw((1, 2))
    first, second = draw.uniform(0.0, 1.0), draw.uniform(0.0, 1.0)
    assert (first, second) == (again.uniform(0.0, 1.0), again.uniform(0.0, 1.0)) and first != second
    many = Draw((0, 0)).uniform(2.0, 4.0, (2000,)).numpy()
    assert many.min() >= 2 and many.max() < 4 and abs(many.mean() - 3) < 0.05
    draw = Draw((5, 0))
    assert {int(draw.integer(3)) for _ in range(40)} == {0, 1, 2}
    assert 10 < sum(bool(draw.chance(0.25)) for _ in range(100)) < 40


# --- sizes of the R-CNN family ---

# Number of the short side, mirrored -> the size of the image, and where the box (5, 10, 25, 16) of one of 30 x 50 lies.
SHORT_SIDES = {
    "the first": (0, False, (15, 25), (2.5, 5, 12.5, 8)),
    "the first, mirrored": (0, True, (15, 25), (12.5, 5, 22.5, 8)),
    "the last": (2, False, (60, 100), (10, 20, 50, 32)),
    "the last, mirrored": (2, True, (60, 100), (50, 20, 90, 32)),
    "rounded down": (1, False, (20, 33), (3.3, 20 / 3, 16.5, 32 / 3)),  # 33.3
    "rounded down, mirrored": (1, True, (20, 33), (16.5, 20 / 3, 29.7, 32 / 3)),
    "kept to the long side": (3, False, (63, 105), (10.5, 21, 52.5, 33.6)),
}


@pytest.mark.parametrize(("number", "mirrored", "size", "box"), SHORT_SIDES.values(), ids=SHORT_SIDES)
def test_random_short_side_by_hand(monkeypatch, number, mirrored, size, box):
    monkeypatch.setattr(transforms, "Draw", lambda seed: Chosen(chances=[mirrored], integer=number))
    ramp = np.repeat(np.arange(50, dtype=np.uint8)[None, :, None], 3, axis=-1)
    image = np.tile(ramp, (30, 1, 1))
    fed, boxes, labels = RandomShortSide((15, 20, 60, 70), 105)(image, np.float32([(5, 10, 25, 16)]), [7], (0, 0))
    assert np.array(fed).dtype == np.float32
    height, width = size
    assert fed.shape == (-(-height // 32) * 32, -(-width // 32) * 32, 3)
    is_image = ~np.isnan(fed)
    assert is_image[:height, :width].all() and not is_image[height:].any() and not is_image[:, width:].any()
    # From dark to bright, with the same step everywhere but at the border.
    step = np.diff(np.array(fed)[0, 2 : width - 2, 0])
    np.testing.assert_allclose(step, np.full(width - 5, (-50 if mirrored else 50) / width), atol=1e-3)
    np.testing.assert_allclose(boxes, [box], rtol=1e-6)
    np.testing.assert_array_equal(labels, [7])


@pytest.fixture(scope="module")
def resize_randomly():
    """To a short side of 40, 50 or 70 pixels, but no more than 80 for the long one."""
    return in_a_graph(RandomShortSide((40, 50, 70), 80))


def test_only_the_sides_of_the_list_are_drawn_and_all_of_them(resize_randomly, scene):
    """An image of 120 x 160: the long side would be 53, 66 and 93."""
    found = [resize_randomly(*scene, (seed, 0)) for seed in range(60)]
    sizes = [tuple(int((~np.isnan(image[..., 0])).any(axis=axis).sum()) for axis in (1, 0)) for image, _, _ in found]
    assert set(sizes) == {(40, 53), (50, 66), (60, 80)}
    assert min(map(sizes.count, set(sizes))) >= 8  # a third is 20
    for (_, boxes, labels), (height, width) in zip(found, sizes, strict=True):
        assert (boxes >= 0).all() and (boxes <= np.float32([width, height] * 2) * (1 + 1e-6)).all()
        np.testing.assert_allclose(boxes[3], (0, 0, width, height), rtol=1e-6)  # that of the whole image
        np.testing.assert_array_equal(labels, scene[2])
    mirrored = sum(boxes[0, 0] > boxes[1, 0] for _, boxes, _ in found)
    assert 18 <= mirrored <= 42


def test_random_short_side_follows_from_the_seed(resize_randomly, scene):
    for one, other in zip(resize_randomly(*scene, (3, 4)), resize_randomly(*scene, (3, 4)), strict=True):
        np.testing.assert_array_equal(one, other)
    images = {resize_randomly(*scene, (seed, 0))[0].tobytes() for seed in range(60)}
    assert len(images) == 6  # three sizes, mirrored or not


def test_a_resized_object_is_where_its_box_says(resize_randomly):
    image = np.zeros((200, 150, 3), np.uint8)
    x1, y1, x2, y2 = box = (30, 40, 81, 160)
    image[y1:y2, x1:x2] = 255
    for seed in range(12):
        fed, boxes, _ = resize_randomly(image, np.float32([box]), np.int32([7]), (seed, 1))
        bright = fed[..., 0] > 127
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        extent = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(extent, boxes[0], atol=1, err_msg=f"seed {seed}")


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (70, 80)])
def test_random_short_side_of_any_image(resize_randomly, shape):
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    for seed in range(4):
        fed, boxes, labels = resize_randomly(np.full((*shape, 3), 200, np.uint8), *nothing, (seed, 0))
        assert boxes.shape == (0, 4) and labels.shape == (0,)
        height, width = (int((~np.isnan(fed[..., 0])).any(axis=axis).sum()) for axis in (1, 0))
        assert 1 <= min(height, width) <= 70 and max(height, width) <= 80
        np.testing.assert_allclose(fed[:height, :width], 200, rtol=1e-6)


# --- CenterNet's window ---

# length of a line -> the border of points that are drawn
BORDERS = {1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 64: 16, 65: 32, 128: 32, 129: 64, 256: 64, 257: 128, 1000: 128}


@pytest.mark.parametrize(("length", "border"), BORDERS.items())
def test_the_inner_points_of_a_line(length, border):
    """The released code halves a border of 128 until two of them leave something in between."""
    asked = []
    draw = Chosen(integer=10**9)
    draw.integer = lambda high: asked.append(int(high)) or tf.constant(0)
    assert int(transforms.inner_point(length, draw)) == border
    assert asked == [length - 2 * border]


# An image of 200 x 100 pixels: its points are 32 from the sides, 64 from the ends. Fed images of 40 pixels.
# (number of the scale, mirrored) and where the points are drawn -> a box of the image, and where it comes to lie
WINDOWS = {
    # Scale 1: a window of 200 pixels around (32, 64), from (-68, -36) on; five pixels are one.
    "the first point": (4, 0, False, (32, 64, 52, 74), (20, 20, 24, 22)),
    "mirrored": (4, 0, True, (32, 64, 52, 74), (16, 20, 20, 22)),
    # Around (67, 135), so from (-33, 35) on.
    "the last point": (4, 10**9, False, (67, 135, 97, 145), (20, 20, 26, 22)),
    # Scale 0.6: a window of 120 pixels, from (-28, 4) on; three pixels are one.
    "the smallest window": (0, 0, False, (2, 4, 32, 64), (10, 0, 20, 20)),
    # Scale 1.3: 260 pixels, from (-98, -66) on.
    "the largest window": (7, 0, False, (0, 0, 65, 130), (98 / 6.5, 66 / 6.5, 163 / 6.5, 196 / 6.5)),
    "clipped": (0, 0, False, (-20, 0, 200, 400), (8 / 3, 0, 40, 40)),
    "outside": (0, 0, False, (93, 0, 99, 50), None),
    "above": (0, 0, False, (2, 0, 32, 4), None),
}


@pytest.mark.parametrize(("scale", "point", "mirrored", "box", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_windows_by_hand(monkeypatch, scale, point, mirrored, box, expected):
    draw = Chosen(0.5, chances=[mirrored])  # colours as they are, but for the lighting
    numbers = [scale, point, point]
    draw.integer = lambda high: tf.constant(min(numbers.pop(0), int(high) - 1))
    draw.normal = lambda deviation, shape: tf.zeros(shape)
    monkeypatch.setattr(transforms, "Draw", lambda seed: draw)
    image = np.full((200, 100, 3), 50, np.uint8)
    x1, y1, x2, y2 = np.clip(box, 0, (100, 200, 100, 200))
    image[y1:y2, x1:x2] = 200
    fed, boxes, labels = CenterNetAugmentation(40)(image, np.float32([box]), np.int32([7]), (0, 0))
    assert fed.shape == (40, 40, 3)
    if expected is None:
        assert boxes.shape == (0, 4) and labels.shape == (0,)
        return
    np.testing.assert_allclose(boxes, [expected], atol=1e-4)
    np.testing.assert_array_equal(labels, [7])
    bright = np.array(fed)[..., 0] > 125
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    shown = expected if box[0] >= 0 else (28 / 3, *expected[1:])  # where the image begins
    np.testing.assert_allclose(found, shown, atol=0.6)


@pytest.mark.parametrize(("shape", "scale"), [((200, 100), 4), ((300, 700), 0), ((50, 60), 7)])
def test_in_its_own_size_the_window_does_not_follow_the_image(monkeypatch, shape, scale):
    """It is 0.6 to 1.3 times as large as the fed image of 40 pixels: a box becomes 1/0.6 to 1/1.3 times as large."""
    draw = Chosen(0.5, chances=[False])
    numbers = [scale, 0, 0]
    draw.integer = lambda high: tf.constant(min(numbers.pop(0), int(high) - 1))
    draw.normal = lambda deviation, shape: tf.zeros(shape)
    monkeypatch.setattr(transforms, "Draw", lambda seed: draw)
    height, width = shape
    left, top = (transforms.inner_point(side, Chosen(integer=0)) for side in (width, height))
    box = np.float32([(left, top, left + 6, top + 3)])
    fed, (found, *_), _ = CenterNetAugmentation(40, of_own_size=True)(np.zeros((*shape, 3), np.uint8), box, [0], (0, 0))
    assert fed.shape == (40, 40, 3)
    zoom = 40 / round(40 * (0.6 + 0.1 * scale))
    np.testing.assert_allclose(found, (20, 20, 20 + 6 * zoom, 20 + 3 * zoom), atol=1e-3)


@pytest.fixture(scope="module")
def crop():
    """To images of 96 pixels a side."""
    return in_a_graph(CenterNetAugmentation(96))


def test_a_window_follows_from_the_seed(crop, scene):
    for one, other in zip(crop(*scene, (3, 4)), crop(*scene, (3, 4)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({crop(*scene, (seed, 0))[0].tobytes() for seed in range(5)}) == 5


def test_what_a_window_shows_is_a_fed_image_with_boxes_inside(crop, scene):
    counts, mirrored = set(), 0
    for seed in range(60):
        image, boxes, labels = crop(*scene, (seed, 0))
        assert (image.shape, image.dtype) == ((96, 96, 3), np.float32)
        assert np.isfinite(image).all()
        assert (boxes >= 0).all() and (boxes <= 96).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert len(boxes) == len(labels) == len(set(labels))
        counts.add(len(boxes))
        if {0, 1} <= set(labels):
            mirrored += boxes[labels == 0, 0] > boxes[labels == 1, 0]
    assert 5 in counts and len(counts) >= 2
    assert 12 <= mirrored <= 45


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (500, 7)])
def test_a_window_of_any_image(crop, shape):
    for boxes in (np.float32([(0, 0, shape[1], shape[0])]), np.zeros((0, 4), np.float32)):
        for seed in range(8):
            labels = np.zeros(len(boxes), np.int32)
            image, found, _ = crop(np.full((*shape, 3), 200, np.uint8), boxes, labels, (seed, 0))
            assert image.shape == (96, 96, 3) and np.isfinite(image).all()
            assert len(found) <= len(boxes)


def test_beside_the_image_a_window_is_of_one_colour(crop):
    """It is black, and takes part in the colours."""
    image = np.full((60, 100, 3), 255, np.uint8)
    seen = 0
    for seed in range(10):
        fed, (box, *_), _ = crop(image, np.float32([(0, 0, 100, 60)]), np.int32([0]), (seed, 0))
        x1, y1, x2, y2 = np.round(box).astype(int)
        beside = np.ones((96, 96), bool)
        beside[y1:y2, x1:x2] = False
        assert np.ptp(fed[beside], axis=0).max() < 1e-3
        assert fed[beside].mean() < fed[y1:y2, x1:x2].mean()
        seen += beside.mean() > 0.2
    assert seen > 5


def marked(width, height, points):
    """An image with a white spot of 5 x 5 pixels around each point."""
    image = np.zeros((height, width, 3), np.uint8)
    for x, y in points:
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
    return image


def test_keypoints_go_where_the_image_goes():
    """Two points of one object: what is left becomes right where the image is mirrored, and they stay where it is
    bright. The colours are those of the other tests' windows."""
    augmentation, seen, beside = CenterNetAugmentation(96, mirrored=(1, 0, 2)), {True: 0, False: 0}, 0
    places = np.float32([[(30.5, 40.5, 2), (80.5, 60.5, 1), (0, 0, 0)]])
    images = [marked(120, 100, [point]) for point in ((30, 40), (80, 60))]
    boxes, labels = np.float32([(5, 5, 110, 95)]), np.int32([4])
    for seed in range(16):
        found = [augmentation(image, boxes, labels, (seed, 0), places) for image in images]
        fed, box, _, keypoints = (np.array(part) for part in found[0])
        plain = augmentation(images[0], boxes, labels, (seed, 0))
        for part, other in zip(plain, found[0], strict=False):
            np.testing.assert_array_equal(part, other)
        assert keypoints.shape == (1, 3, 3) and len(box) == 1
        mirrored = keypoints[0, 0, 2] == 1
        seen[bool(mirrored)] += 1
        first, second = keypoints[0, [1, 0] if mirrored else [0, 1], :2]
        assert (first[0] > second[0]) == mirrored
        for image, (x, y) in ((fed, first), (np.array(found[1][0]), second)):
            if not (4 < x < 92 and 4 < y < 92):
                beside += 1
                continue
            rows, columns = np.nonzero(image[..., 0] > image[..., 0].min() + 0.5 * np.ptp(image[..., 0]))
            np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), (x, y), atol=0.8)
    assert min(seen.values()) >= 3 and beside < 16


def test_extreme_points_stay_on_their_box():
    """A mirror exchanges left and right; and where the border cuts the box off, they lie beside the image."""
    augmentation, cut = CenterNetAugmentation(96, mirrored=skeleton.mirrored(skeleton.EXTREME_POINTS)), 0
    boxes = np.float32([(20, 15, 90, 80), (5, 40, 45, 60)])
    x1, y1, x2, y2 = boxes.T
    corners = [(x1 + 9, y1), (x1, y1 + 3), (x1 + 5, y2), (x2, y2 - 7)]
    places = np.float32([[(*point, 2) for point in zip(*corner, strict=True)] for corner in corners]).swapaxes(0, 1)
    image, labels = np.zeros((100, 120, 3), np.uint8), np.int32([0, 1])
    for seed in range(16):
        _, box, label, keypoints = augmentation(image, boxes, labels, (seed, 0), places)
        assert len(box) == len(label) == len(keypoints)
        edges = np.array(keypoints)[:, [1, 0, 3, 2], [0, 1, 0, 1]]
        np.testing.assert_allclose(np.clip(edges, 0, 96), box, atol=1e-4)
        cut += not np.allclose(edges, box)
    assert 0 < cut < 16


# --- CenterNet's colours ---


def released_colours(image, order, alphas, light):
    """What color_aug of xingyizhou/CenterNet does; RGB in 0..1."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    for kind, alpha in zip(order, alphas, strict=True):
        other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey[..., None]}[kind]
        image = alpha * image + (1 - alpha) * other
    # Its eigenvectors are those of BGR.
    vectors = np.array([(-0.58752847, -0.69563484, 0.41340352), (-0.5832747, 0.00994535, -0.81221408)])
    vectors = np.array([*vectors, (-0.56089297, 0.71832671, 0.41158938)])
    return image + (vectors @ (np.array([0.2141788, 0.01817699, 0.00341571]) * light))[::-1]


ORDERS = {
    (0.1, 0.2, 0.3): ("brightness", "saturation", "contrast"),
    (0.3, 0.2, 0.1): ("contrast", "saturation", "brightness"),
    (0.9, 0.1, 0.5): ("saturation", "contrast", "brightness"),
}


@pytest.mark.parametrize(("keys", "order"), ORDERS.items(), ids=map(" ".join, ORDERS.values()))
def test_blended_colours_are_those_of_the_released_code(keys, order):
    image = np.random.default_rng(0).uniform(0, 1, (6, 5, 3))
    alphas, light = (0.7, 1.3, 1.1), (0.05, -0.1, 0.2)
    draws = [np.float32(keys), *np.float32(alphas)]
    draw = Chosen()
    draw.uniform = lambda low, high, shape=(): tf.constant(draws.pop(0))
    draw.normal = lambda deviation, shape: tf.constant(light)
    blended = transforms.blend_colours(tf.constant(image * 255, tf.float32), draw)
    np.testing.assert_allclose(blended, 255 * released_colours(image, order, alphas, light), atol=1e-2)


def test_how_far_colours_are_blended():
    ranges = []
    draw = Draw((0, 0))
    draw.uniform = lambda low, high, shape=(): ranges.append((low, high)) or Draw((0, 0)).uniform(low, high, shape)
    draw.normal = lambda deviation, shape: ranges.append(deviation) or tf.zeros(shape)
    transforms.blend_colours(tf.zeros((2, 2, 3)), draw)
    assert ranges == [(0.0, 1.0), *[(0.6, 1.4)] * 3, 0.1]


def test_normal_draws():
    many = Draw((0, 0)).normal(0.5, (4000,)).numpy()
    assert abs(many.mean()) < 0.03 and abs(many.std() - 0.5) < 0.03
    draw = Draw((1, 0))
    assert float(draw.normal(1.0)) != float(draw.normal(1.0))
