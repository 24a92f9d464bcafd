import numpy as np
import pytest
from pycocotools.cocoeval import Params

from tfdet import skeleton
from tfdet.errors import TfdetError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("nose", "left_eye", "right_eye"), (0, 2, 1)),
        (("top", "left", "bottom", "right"), (0, 3, 2, 1)),
        (("mouth_right", "mouth_left"), (1, 0)),
        ((), ()),
    ],
)
def test_a_mirror_exchanges_left_and_right(names, expected):
    assert skeleton.mirrored(names) == expected


def test_of_people():
    pairs = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]  # flip_idx of the released code
    expected = [0, *(i for pair in pairs for i in reversed(pair))]
    assert list(skeleton.mirrored(skeleton.PERSON)) == expected
    assert [skeleton.side(name) for name in skeleton.PERSON[:3]] == ["", "left", "right"]
    np.testing.assert_allclose(skeleton.sigmas(skeleton.PERSON), Params("keypoints").kpt_oks_sigmas)
    assert np.mean(skeleton.sigmas(skeleton.PERSON)) == pytest.approx(skeleton.OTHER_SIGMA, abs=5e-4)
    assert skeleton.sigmas(("tail",)) == (skeleton.OTHER_SIGMA,)


# COCO's own, of the categories of person_keypoints_val2017.json, counted from 1
SKELETON = [(16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10)]
SKELETON += [(9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)]


def test_the_limbs_are_those_of_coco():
    limbs = {frozenset(pair) for pair in skeleton.limbs(skeleton.PERSON)}
    assert limbs == {frozenset((a - 1, b - 1)) for a, b in SKELETON}
    assert skeleton.limbs(("left_knee", "right_knee", "left_ankle")) == ((0, 2),)
    assert skeleton.limbs(skeleton.EXTREME_POINTS) == ()


def test_a_name_without_a_counterpart():
    with pytest.raises(TfdetError, match="keypoint left_eye: a mirror makes it right_eye, which there is not"):
        skeleton.mirrored(("nose", "left_eye"))
