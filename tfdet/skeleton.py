"""Keypoints by their names: which of them a mirror exchanges, which are joined by a limb, how exactly they are placed.

Nothing else needs to be known of a kind of keypoint: the joints of people, landmarks of a face, corners of a box.
"""

from tfdet.errors import TfdetError

# COCO's, in its order.
PERSON = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow")
PERSON += ("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee")
PERSON += ("left_ankle", "right_ankle")

# Where an object reaches its box: ExtremeNet's, in its order (see tfdet.extreme_points).
EXTREME_POINTS = ("top", "left", "bottom", "right")

# MTCNN's five landmarks of a face, left being the viewer's; the corners of the mouth.
FACE = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")

# Lines of a drawing: COCO's skeleton, one side of it for both, and a mouth.
ACROSS = (("eye", "eye"), ("shoulder", "shoulder"), ("hip", "hip"))
ALONG = (("nose", "eye"), ("eye", "ear"), ("ear", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"))
ALONG += (("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"))

# COCO's sigmas: how far apart two annotators put the keypoint, in units of the square root of the object's area
# (cocodataset.org, keypoints evaluation). Others count as COCO's do on the average.
SIGMAS = {"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107}
SIGMAS |= {"knee": 0.087, "ankle": 0.089}
OTHER_SIGMA = 0.067


def mirrored(names):
    """For each keypoint the index of the one that it is in a mirror image: "left" and "right" change places.

    Raises:
        TfdetError: a name has no counterpart.
    """
    indices = {name: i for i, name in enumerate(names)}
    counterparts = [_other_side(name) for name in names]
    if alone := [name for name, other in zip(names, counterparts, strict=True) if other not in indices]:
        raise TfdetError(f"keypoint {alone[0]}: a mirror makes it {_other_side(alone[0])}, which there is not")
    return tuple(indices[name] for name in counterparts)


def _other_side(name):
    return "right".join(part.replace("right", "left") for part in name.split("left"))


def side(name):
    """ "left", "right" or "" of a keypoint."""
    return next((side for side in ("left", "right") if side in name), "")


def limbs(names):
    """The pairs of keypoints (indices) that a drawing joins."""
    pairs = [(f"left_{a}", f"right_{b}") for a, b in ACROSS] + [("mouth_left", "mouth_right")]
    for one in ("left", "right"):
        pairs += [tuple(name if name == "nose" else f"{one}_{name}" for name in pair) for pair in ALONG]
    return tuple((names.index(a), names.index(b)) for a, b in pairs if a in names and b in names)


def sigmas(names):
    """For each keypoint how exactly it is placed, as COCO's evaluation wants it."""
    return tuple(SIGMAS.get(name.removeprefix("left_").removeprefix("right_"), OTHER_SIGMA) for name in names)
