import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdet.data.validation import Problems, check_boxes, check_image
from tfdet.errors import DataError

INF, NAN = float("inf"), float("nan")


def check(boxes, on_error="skip", size=(64, 48), **options):
    problems = Problems(on_error)
    result = check_boxes(problems, boxes, size, lambda i: ("FILE: image ID", i, '"cat"'), **options)
    return *result, problems.lines


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((NAN, 1, 20, 20), "not finite"),
        ((1, 1, INF, 20), "not finite"),
        ((-INF, 1, 20, 20), "not finite"),
        ((20, 1, 10, 20), "inverted"),
        ((1, 20, 10, 5), "inverted"),
        ((5, 5, 5, 20), "zero area"),
        ((5, 5, 20, 5), "zero area"),
        ((5, 5, 5 + 1e-9, 20), "zero area in float32"),
        ((0.1, 0.2, 0.5, 0.9), "normalised units"),
        ((0, 0, 1, 1), "normalised units"),
        ((70, 5, 80, 10), "lies outside the image of 64x48 pixels"),
        ((5, 48, 10, 60), "lies outside the image"),
        ((-9, 5, 0, 10), "lies outside the image"),
        ((1e300, 5, 2e300, 10), "lies outside the image"),
    ],
)
def test_a_bad_box_is_named_and_left_out(box, fault):
    good = (2, 3, 30, 40)
    boxes, keep, lines = check([good, box, good])
    assert keep.tolist() == [True, False, True]
    assert boxes[0].tolist() == list(good)
    assert len(lines) == 1
    assert lines[0].startswith("FILE: image ID: box 1 (")
    assert fault in lines[0]
    with pytest.raises(DataError, match=r"box 1 .*on_error=\"skip\" leaves it out\)$") as error:
        check([good, box], "raise")
    assert fault in str(error.value)


def test_the_line_is_the_documented_one():
    assert check([(5, 33.5, 5, 34)])[2] == ['FILE: image ID: box 0 (5, 33.5, 5, 34) "cat": has zero area']


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_excess_of_up_to_a_pixel_is_clipped_silently(on_error):
    boxes, keep, lines = check([(-1, -0.5, 65, 48.9)], on_error)
    assert boxes.tolist() == [[0, 0, 64, 48]]
    assert (keep.all(), lines) == (True, [])


def test_a_box_that_leaves_the_image_further_is_clipped_and_reported():
    boxes, keep, lines = check([(10, 10, 66, 20), (-3, 10, 20, 20)])
    assert boxes.tolist() == [[10, 10, 64, 20], [0, 10, 20, 20]]
    assert keep.all()
    assert lines[0] == 'FILE: image ID: box 0 (10, 10, 66, 20) "cat": leaves the image of 64x48 pixels: clipped'
    with pytest.raises(DataError, match=r"leaves the image .*clips it"):
        check([(10, 10, 66, 20)], "raise")


def test_what_is_written_decides_and_is_shown():
    boxes, keep, lines = check([(4, 5, 5, 9), (4, 5, 9, 9)], written=[(5, 6, 5, 9), (5, 6, 9, 9)])
    assert keep.tolist() == [False, True]
    assert boxes[1].tolist() == [4, 5, 9, 9]
    assert "(5, 6, 5, 9)" in lines[0]


def test_a_tiny_image_may_have_tiny_boxes():
    assert check([(0, 0, 1, 1)], size=(4, 4))[2] == []


def test_no_boxes():
    for nothing in ([], np.zeros((0, 4))):
        boxes, keep, lines = check(nothing)
        assert (boxes.shape, keep.shape, lines) == ((0, 4), (0,), [])


numbers = st.floats(-80, 80, width=32) | st.floats(width=64) | st.sampled_from([0.0, 1.0, 64.0])


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=6))
def test_what_is_kept_is_sound_and_nothing_goes_silently(rows):
    boxes, keep, lines = check(rows)
    kept = boxes[keep]
    assert np.isfinite(kept).all()
    assert ((kept >= 0) & (kept <= (64, 48, 64, 48))).all()
    assert ((kept[:, 2:] - kept[:, :2]).prod(axis=1) > 0).all()
    assert len(lines) == (~keep).sum() + sum(line.endswith(": clipped") for line in lines)


def test_an_unusable_image(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not much")
    for name, fault in (("absent.jpg", "no image file"), ("broken.jpg", "header of image file")):
        problems = Problems("skip")
        assert check_image(problems, "FILE: image 7", str(tmp_path / name)) is None
        assert len(problems.lines) == 1
        assert problems.lines[0].startswith("FILE: image 7: ")
        assert fault in problems.lines[0] and name in problems.lines[0]


def test_a_report_is_one_line_that_can_be_printed():
    problems = Problems("skip")
    problems.report("a\nb\rc \ud800 \x85\x1b[2J é 漢")
    assert problems.lines == ["a\\nb\\rc \\ud800 \\x85\\x1b[2J é 漢"]
