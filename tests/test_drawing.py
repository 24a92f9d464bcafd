"""Pictures are looked at by people; here the pixels that can be foretold are checked."""

import itertools

import numpy as np
import pytest
from PIL import Image

from tfdet import drawing
from tfdet.data.dataset import Example
from tfdet.inference import Detections
from tfdet.skeleton import EXTREME_POINTS

NAMES = ("cat", "dog", "a class with quite a long name")
GREY = (90, 90, 90)


def grey(width, height):
    return np.full((height, width, 3), GREY[0], np.uint8)


def changed(image):
    """bool [H, W]: pixels of a drawing that are not the grey of the picture below."""
    return (np.asarray(image) != GREY[0]).any(axis=-1)


def count(image, color):
    return int((np.asarray(image) == color).all(axis=-1).sum())


def test_colors_differ():
    assert len({drawing.class_color(label) for label in range(84)}) == 84
    assert all(0 <= channel <= 255 for label in range(200) for channel in drawing.class_color(label))
    first = np.array([drawing.class_color(label) for label in range(7)], float)
    distances = np.linalg.norm(first[:, None] - first, axis=-1)[~np.eye(7, dtype=bool)]
    assert distances.min() > 60


@pytest.mark.parametrize("as_pil", [False, True])
@pytest.mark.parametrize(("width", "height"), [(300, 300), (640, 480), (4000, 3000)])
def test_frames_have_the_colour_of_the_class(width, height, as_pil):
    picture = Image.fromarray(grey(width, height)) if as_pil else grey(width, height)
    fractions = np.array([[0.1, 0.2, 0.45, 0.9], [0.55, 0.3, 0.95, 0.8]])
    boxes = (fractions * [width, height, width, height]).astype(np.float32)
    drawn = drawing.draw_boxes(picture, boxes, [0, 1], NAMES)
    assert drawn.size == (width, height) and drawn.mode == "RGB"
    for (x1, y1, x2, y2), label in zip(boxes.round().astype(int).tolist(), (0, 1), strict=True):
        middle = ((x1 + x2) // 2, (y1 + y2) // 2)
        for edge in ((x1, middle[1]), (x2 - 1, middle[1]), (middle[0], y2 - 1), (x2 - 1, y1)):
            assert drawn.getpixel(edge) == drawing.class_color(label)
        for outside in ((x1 - 1, middle[1]), (x2, middle[1]), (middle[0], y2), middle):
            assert drawn.getpixel(outside) == GREY
    assert not changed(picture).any()  # the argument is left alone


def test_lines_and_letters_grow_with_the_image():
    tags = []
    for scale in (1, 4, 12):
        drawn = drawing.draw_boxes(
            grey(300 * scale, 300 * scale), [[60 * scale, 90 * scale] + [240 * scale] * 2], [0], NAMES
        )
        column = changed(drawn)[150 * scale]
        line = column.sum() / 2
        above = changed(drawn)[: 90 * scale]
        tags.append((line, above.any(axis=1).sum(), above.any(axis=0).sum()))
    assert tags[0][0] == 2 and tags[0][1] >= 11
    assert all(np.less(small, large).all() for small, large in itertools.pairwise(tags))


@pytest.mark.parametrize(
    ("box", "tag_rows"),
    [
        ([100, 100, 200, 200], "above"),
        ([0, 100, 100, 200], "above"),
        ([280, 100, 300, 200], "above"),  # too wide for the rest of the line: moved to the left
        ([100, 0, 200, 200], "inside"),
        ([100, 3, 200, 20], "below"),
        ([0, 0, 300, 300], "inside"),
        ([295, 295, 300, 300], "above"),
        ([-20, -20, 320, 320], "inside"),  # a detection that was not clipped
    ],
)
def test_tag_is_whole_and_inside(box, tag_rows):
    """Its ground and letters cover as many pixels as in the middle of a large image."""
    whole = changed(drawing.draw_boxes(grey(300, 300), [[20, 150, 40, 200]], [2], NAMES, scores=[0.25]))[:150]
    height = whole.any(axis=1).sum()

    ours = changed(drawing.draw_boxes(grey(300, 300), [box], [2], NAMES, scores=[0.25]))
    y = {"above": box[1] - height, "inside": max(0, box[1]), "below": box[3]}[tag_rows]
    assert ours[y : y + height].sum() >= whole.sum()
    assert ours[y + height // 2].sum() >= whole.any(axis=0).sum()


def test_an_image_smaller_than_its_tag():
    assert changed(drawing.draw_boxes(grey(8, 6), [[1, 1, 5, 5]], [2], NAMES)).any()


def test_tags_of_neighbours_do_not_cover_each_other():
    color = drawing.class_color(0)
    one = count(drawing.draw_boxes(grey(300, 300), [[50, 100, 150, 200]], [0], NAMES), color)
    # The same corner twice: the second tag goes elsewhere, so its ground is seen in full as well.
    two = count(drawing.draw_boxes(grey(300, 300), [[50, 100, 150, 200], [50, 100, 151, 201]], [0, 0], NAMES), color)
    tag = changed(drawing.draw_boxes(grey(300, 300), [[50, 100, 150, 200]], [0], NAMES))[:100].sum()
    assert two - one > tag / 2


def test_the_best_score_lies_on_top():
    boxes, scores = [[50, 100, 150, 200], [50, 100, 150, 200]], [0.9, 0.4]
    for labels in ([0, 1], [1, 0]):
        drawn = drawing.draw_boxes(grey(300, 300), boxes, labels, NAMES, scores=scores)
        assert drawn.getpixel((149, 150)) == drawing.class_color(labels[0])


def test_no_boxes_and_one_colour():
    empty = np.zeros((0, 4), np.float32)
    assert not changed(drawing.draw_boxes(grey(60, 40), empty, np.zeros(0, int), NAMES, scores=np.zeros(0))).any()
    drawn = drawing.draw_boxes(grey(300, 300), [[50, 100, 150, 200]], [1], NAMES, color=(1, 2, 3))
    assert drawn.getpixel((149, 150)) == (1, 2, 3)
    assert count(drawn, drawing.class_color(1)) == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_kinds_of_images(mode):
    assert drawing.draw_boxes(Image.new(mode, (50, 40)), [[5, 5, 40, 30]], [0], NAMES).mode == "RGB"


@pytest.mark.parametrize(
    ("sizes", "columns", "captions", "cells"),
    [
        ([(100, 80)], 3, False, (1, 1, 100, 80)),
        ([(100, 80)] * 3, 3, False, (3, 1, 100, 80)),
        ([(100, 80)] * 4, 3, True, (3, 2, 100, 80)),
        ([(200, 160), (100, 80), (50, 40)], 1, True, (1, 3, 100, 80)),  # the median; all have its shape
    ],
)
def test_size_of_a_grid(sizes, columns, captions, cells):
    across, down, width, height = cells
    words = [f"picture {i}" for i in range(len(sizes))] if captions else None
    sheet = drawing.grid([grey(*size) for size in sizes], columns, words)
    height += drawing.CAPTION if captions else 0
    margin = drawing.MARGIN
    assert sheet.size == (across * (width + margin) + margin, down * (height + margin) + margin)


def test_captions_may_have_several_lines():
    one, two = (drawing.grid([grey(300, 50)] * 2, 2, ["first", below]) for below in ("second", "second\nthird"))
    assert two.height - one.height == drawing.CAPTION
    text = (np.asarray(two)[: drawing.MARGIN + 2 * drawing.CAPTION] < 128).any(axis=(1, 2))
    assert (
        text[drawing.MARGIN : drawing.MARGIN + drawing.CAPTION].any() and text[drawing.MARGIN + drawing.CAPTION :].any()
    )


def test_grid_keeps_shapes_and_order():
    colors = ["red", "lime", "blue"]
    pictures = [Image.new("RGB", size, c) for size, c in zip([(100, 80), (100, 80), (40, 80)], colors, strict=True)]
    sheet = drawing.grid(pictures, 2)
    assert [count(sheet, color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))] == [8000, 8000, 3200]
    margin = drawing.MARGIN
    assert sheet.getpixel((margin, margin)) == (255, 0, 0)
    assert sheet.getpixel((margin + 100 + margin, margin)) == (0, 255, 0)
    assert sheet.getpixel((margin + 50, margin + 80 + margin)) == (0, 0, 255)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


def test_long_captions_are_shortened():
    sheet = np.asarray(drawing.grid([grey(100, 20)] * 2, 2, ["word " * 40, ""]))
    captions = (sheet[drawing.MARGIN : drawing.MARGIN + drawing.CAPTION] < 128).any(axis=(0, 2))
    left, right = drawing.MARGIN, drawing.MARGIN + 100
    assert captions[left:right].any() and not captions[:left].any() and not captions[right:].any()


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [([], None, "at least one image"), ([grey(5, 5)], ["a", "b"], "1 images but 2 captions")],
)
def test_grid_refuses(images, captions, message):
    with pytest.raises(ValueError, match=message):
        drawing.grid(images, 2, captions)


def annotated(image_id, boxes, labels, width, height):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    no = np.zeros(len(boxes), bool)
    return Example(image_id, "", height, width, boxes, np.array(labels, np.int32), no, no, boxes[:, 0])


def test_truth_at_the_left_predictions_at_the_right():
    images = [grey(320, 240), grey(320, 240)]
    examples = [annotated("a", [[50, 100, 100, 200]], [0], 320, 240), annotated("b", [], [], 320, 240)]
    boxes = np.array([[50, 100, 100, 200], [200, 50, 300, 90]], np.float32)
    none = np.zeros(0, np.float32)
    detections = [
        Detections("a", boxes, np.array([0.3, 0.29], np.float32), np.array([1, 2], np.int32)),
        Detections("b", boxes[:0], none, none.astype(np.int32)),
    ]
    sheet = drawing.truth_and_predictions(images, examples, detections, NAMES, min_score=0.3)
    # 320x240 is enlarged to 640x480.
    margin, caption = drawing.MARGIN, drawing.CAPTION
    assert sheet.size == (3 * margin + 2 * 640, 3 * margin + 2 * (480 + caption))
    edge = (margin + 100, margin + caption + 300)
    assert sheet.getpixel(edge) == drawing.class_color(0)
    assert sheet.getpixel((edge[0] + 640 + margin, edge[1])) == drawing.class_color(1)
    assert count(sheet, drawing.class_color(2)) == 0  # 0.29 is below the threshold
    second_row = np.asarray(sheet)[2 * margin + 2 * caption + 480 : -margin]
    assert set(np.unique(second_row)) == {GREY[0], 255}


def test_truth_and_predictions_of_different_images_are_refused():
    example = annotated("a", [], [], 32, 24)
    other = Detections("b", np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    with pytest.raises(ValueError, match="'b' beside image 'a'"):
        drawing.truth_and_predictions([grey(32, 24)], [example], [other], NAMES)
    with pytest.raises(ValueError):
        drawing.truth_and_predictions([grey(32, 24)], [example], [], NAMES)


NAN = float("nan")
LOSSES = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.5, 2.5, 2.0], "box": [1.0, 0.5, 0.2]}
PRECISION = {"val_AP": [0.1, NAN, 0.3], "val_AP50": [0.2, 0.3, 0.5], "val_AR100": [0.9, 0.9, 0.9]}
RATE = {"learning_rate": [0.1, 0.01, 0.001]}


def drawn_curves(tmp_path, history):
    path = tmp_path / "curves.png"
    drawing.curves(history, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("history", "panels"),
    [
        (LOSSES, 1),
        (LOSSES | PRECISION, 2),
        (LOSSES | PRECISION | RATE, 3),
        ({"loss": [1.0]}, 1),
        ({"loss": [NAN, NAN]}, 1),
        ({"loss": [-1.0, 2.0]}, 1),
        ({"loss": [100.0, 1.0, 0.0]}, 1),
        ({"loss": [1000.0, 1.0]}, 1),
        ({}, 1),
    ],
)
def test_curves_have_a_panel_for_each_kind(tmp_path, history, panels):
    image = drawn_curves(tmp_path, history)
    assert image.shape[0] == pytest.approx(panels * 3.6 * 110, abs=2)
    assert (image < 250).any() == bool(history)


def test_curves_show_the_data(tmp_path):
    whole = drawn_curves(tmp_path, LOSSES | PRECISION)
    assert np.array_equal(whole, drawn_curves(tmp_path, LOSSES | PRECISION))
    recall = {"val_AR100": [0.1, 0.2, 0.3]}  # not drawn
    assert np.array_equal(whole, drawn_curves(tmp_path, LOSSES | PRECISION | recall))
    half = whole.shape[0] // 2
    for name, upper in (("loss", True), ("val_loss", True), ("val_AP", False), ("val_AP50", False)):
        history = LOSSES | PRECISION
        history[name] = [value * 0.9 for value in history[name]]
        other = drawn_curves(tmp_path, history)
        assert (whole[:half] != other[:half]).any() == upper
        assert (whole[half:] != other[half:]).any() == (not upper)


def test_curves_leave_no_global_figure(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    drawing.curves(LOSSES, tmp_path / "curves.png")
    assert pyplot.get_fignums() == before


# ----------------------------------------------------------------------------------------------------- keypoints


BODY = ("nose", "left_eye", "right_eye", "left_hip", "right_hip")
PLACES = np.float32([[(150, 30), (240, 30), (60, 30), (240, 200), (60, 200)]])
LEFT, RIGHT, MIDDLE = (drawing.SIDE_COLORS[side] for side in ("left", "right", ""))


def test_left_and_right_are_told_apart():
    drawn = drawing.draw_keypoints(grey(300, 300), PLACES, np.ones((1, 5), bool), BODY)
    for (x, y), color in zip(PLACES[0].astype(int).tolist(), (MIDDLE, LEFT, RIGHT, LEFT, RIGHT), strict=True):
        assert drawn.getpixel((x, y)) == color
    assert drawn.getpixel((195, 30)) == LEFT and drawn.getpixel((105, 30)) == RIGHT  # from the nose to the eyes
    assert drawn.getpixel((150, 200)) == MIDDLE  # between the hips
    assert drawn.getpixel((240, 120)) == GREY  # no limb


def test_what_is_not_shown_is_not_drawn():
    shown = np.array([[True, False, True, False, True]])
    drawn = drawing.draw_keypoints(grey(300, 300), PLACES, shown, BODY)
    assert drawn.getpixel((105, 30)) == RIGHT and drawn.getpixel((60, 200)) == RIGHT
    for place in ((195, 30), (240, 30), (150, 200)):
        assert drawn.getpixel(place) == GREY
    assert not changed(drawing.draw_keypoints(grey(300, 300), PLACES, ~np.ones((1, 5), bool), BODY)).any()
    assert not changed(drawing.draw_keypoints(grey(300, 300), PLACES[:0], np.ones((0, 5), bool), BODY)).any()


def test_extreme_points_are_an_octagon():
    points = np.float32([[(140, 20), (60, 140), (180, 260), (220, 100)]])  # in a box of 160 x 240
    drawn = drawing.draw_keypoints(grey(300, 300), points, np.ones((1, 4), bool), EXTREME_POINTS)
    for place in ((130, 20), (60, 160), (165, 260), (220, 120), (90, 65)):  # on the edges; half way down a corner
        assert drawn.getpixel(place) == MIDDLE
    assert drawn.getpixel((60, 140)) == LEFT and drawn.getpixel((220, 100)) == RIGHT
    shown = np.array([[True, True, False, True]])
    assert drawing.draw_keypoints(grey(300, 300), points, shown, EXTREME_POINTS).getpixel((130, 20)) == GREY


def test_skeletons_beside_each_other():
    keypoints = np.pad(PLACES, [(0, 0), (0, 0), (0, 1)], constant_values=2)
    keypoints[0, 0, 2] = 0
    box = np.float32([(40, 10, 260, 220)])
    rest = {"crowd": np.zeros(1, bool), "difficult": np.zeros(1, bool), "areas": np.ones(1)}
    example = Example("a", "a.jpg", 300, 300, boxes=box, labels=np.int32([0]), keypoints=keypoints, **rest)
    scores = np.float32([(0.9, 0.9, 0.9, 0.9, 0)])
    found = Detections("a", box, np.float32([0.9]), np.int32([0]), PLACES, scores)
    pictures = []
    for names in (BODY, ()):
        sheet = drawing.truth_and_predictions([grey(300, 300)], [example], [found], NAMES, keypoint_names=names)
        pictures.append(np.asarray(sheet))
    assert (pictures[0] != pictures[1]).any()
    left, right = np.split(pictures[0][:, : pictures[0].shape[1] // 2 * 2], 2, axis=1)
    assert count(left, MIDDLE) > 5 * count(right, MIDDLE) > 0  # between the hips; only the nose


# --------------------------------------------------------------------------------------------------------- peaks


def peak(*rows):
    """Rows: x, y, score, label."""
    x, y, scores, labels = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return {"points": np.stack([x, y], axis=1), "scores": scores, "labels": labels.astype(np.int32)}


FIRST, SECOND = drawing.PALETTE[:2]
CORNERS = {
    "top_left": peak((100, 100, 0.9, 0), (40, 250, 0.5, 0), (250, 40, 0.2, 0), (100, 100, 0.8, 1)),
    "bottom_right": peak((200, 150, 0.2, 0), (320, 280, 0.6, 0)),
}
ONE = Detections("a", np.float32([(100, 100, 200, 150)]), np.float32([0.55]), np.int32([0]))


def test_the_peaks_of_a_detection_are_filled_and_joined():
    drawn = drawing.draw_peaks(grey(300, 300), CORNERS, ONE)
    assert drawn.getpixel((100, 100)) == FIRST and drawn.getpixel((200, 150)) == SECOND
    assert drawn.getpixel((120, 110)) == FIRST and drawn.getpixel((180, 140)) == SECOND  # half the diagonal each
    assert drawn.getpixel((40, 250)) == GREY and count(drawn.crop((30, 240, 50, 260)), FIRST)  # hollow
    assert not changed(drawn.crop((240, 30, 260, 50))).any()  # not good enough
    assert count(drawn.crop((290, 270, 300, 290)), SECOND)  # outside: at the border
    alone = drawing.draw_peaks(grey(300, 300), CORNERS, ONE.where(np.array([False])))
    assert alone.getpixel((120, 110)) == GREY and alone.getpixel((100, 100)) == GREY
    assert not changed(alone.crop((190, 140, 210, 160))).any()  # a partner that is not good enough by itself


@pytest.mark.parametrize(
    ("found", "filled"),
    [
        (ONE, True),
        (ONE._replace(labels=np.int32([1])), True),  # there is a peak of that class, too
        (ONE._replace(labels=np.int32([2])), False),
        (ONE._replace(boxes=ONE.boxes + 2), False),
    ],
)
def test_a_detection_is_made_of_peaks_of_its_class_at_its_corners(found, filled):
    drawn = drawing.draw_peaks(grey(300, 300), CORNERS, found, min_score=0.85)
    assert (drawn.getpixel((100, 100)) == FIRST) is filled


def test_the_centre_of_a_box_that_is_cut_off_is_not_its_middle():
    centres = {"centre": peak((120, 290, 0.9, 0), (150, 100, 0.8, 0))}
    drawn = drawing.draw_peaks(grey(300, 300), centres, ONE._replace(boxes=np.float32([(80, 200, 160, 300)])))
    assert drawn.getpixel((120, 290)) == FIRST and drawn.getpixel((150, 100)) == GREY
    assert drawn.getpixel((120, 270)) == FIRST  # the line to the middle


def test_extreme_points_are_joined_to_the_middle():
    points = [(150, 50), (50, 100), (130, 250), (250, 150)]
    peaks = {name: peak((x, y, 0.5, 0)) for name, (x, y) in zip(EXTREME_POINTS, points, strict=True)}
    box = np.float32([(50, 50, 250, 250)])
    found = Detections("a", box, np.float32([0.5]), np.int32([0]), np.float32([points]), np.ones((1, 4), np.float32))
    drawn = drawing.draw_peaks(grey(300, 300), peaks, found)
    for (x, y), color in zip(points, drawing.PALETTE[:4], strict=True):
        assert drawn.getpixel((x, y)) == color
        assert color in [drawn.getpixel((round((x + 150) / 2) + i, round((y + 150) / 2))) for i in (-1, 0, 1)]
    for color in drawing.PALETTE[:4]:  # the legend
        assert count(drawn.crop((0, 0, 20, 90)), color)
