"""Which detectors are inspected, with which settings: those that the recipe would train with on the same data."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from tfdet import commandline
from tfdet.backbones.stand_in import stand_in
from tfdet.errors import TfdetError
from tfdet.recipes import centernet, cornernet, extremenet, faster_rcnn, fcos, mtcnn, retinanet, ssd300


class Kind(NamedTuple):
    """What is needed of a detector.

    recipe: its module. fields: those of its Settings that samples depend on. rules: those attributes of its encoder
    that may be changed, each with a function from the value given to the encoder's, which raises ValueError.
    """

    recipe: ModuleType
    fields: tuple[str, ...]
    rules: dict[str, Callable]


class Choice(NamedTuple):
    """A row of the table: a name of DETECTORS, {setting: value} that differ from the recipe's, the same as text, and
    whether it was not a person who wanted them."""

    detector: str
    changes: dict
    settings: str = ""
    suggested: bool = False


def share(value):
    if not 0 <= value <= 1:
        raise ValueError("must be between 0 and 1")
    return float(value)


def radius(value):
    if not value >= 0:
        raise ValueError("must be at least 0, which is none")
    return float(value) or None


def ranges(limits):
    """The limits between the levels -> what each of them answers for."""
    if len(limits) != 4 or list(limits) != sorted(limits):
        raise ValueError("must be four numbers that rise, such as [64, 128, 256, 512]")
    return tuple(zip((0, *limits), (*limits, math.inf), strict=True))


SIZES, SIDE = ("backbone", "short_sides", "long_side"), ("backbone", "side", "test_size")
IOUS, OVERLAP = {"pos_iou": share, "neg_iou": share, "min_pos_iou": share}, {"min_overlap": share}
DETECTORS = {
    "ssd300": Kind(ssd300, ("priors", "prior_sizes"), {"iou": share}),
    "faster_rcnn_fpn": Kind(faster_rcnn, (*SIZES, "anchor_sizes"), IOUS),
    "retinanet": Kind(retinanet, (*SIZES, "anchor_sizes"), IOUS),
    "fcos": Kind(fcos, (*SIZES, "version"), {"radius": radius, "ranges": ranges}),
    "centernet": Kind(centernet, SIDE, OVERLAP),
    "cornernet": Kind(cornernet, SIDE, OVERLAP),
    "extremenet": Kind(extremenet, SIDE, OVERLAP),
    "mtcnn": Kind(mtcnn, ("min_face",), {}),
}


def choices(names, changes):
    """The rows of a table: each detector as its recipe trains it, and below it each change of it.

    Args:
        names: of DETECTORS.
        changes: texts "ssd300.iou=0.4", or with several settings of one detector, "fcos.radius=1,long_side=640".
    Raises:
        TfdetError: there is no such detector or setting, or it is not among the names, or has no such value.
    """
    if unknown := [name for name in names if name not in DETECTORS]:
        raise TfdetError(f"no detector {', '.join(unknown)} to inspect; there are {', '.join(DETECTORS)}")
    changed = [_choice(text) for text in changes]
    if left_out := [one for one in changed if one.detector not in names]:
        raise TfdetError(f"--set {left_out[0].detector}.{left_out[0].settings}: {left_out[0].detector} is left out")
    rows = []
    for name in dict.fromkeys(names):
        rows += [Choice(name, {}), *(one for one in changed if one.detector == name)]
    return rows


def _choice(text):
    detector, _, settings = text.partition(".")
    if detector not in DETECTORS or "=" not in settings:
        raise TfdetError(f"--set {text}: give DETECTOR.SETTING=VALUE, with one of {', '.join(DETECTORS)}")
    kind, changes = DETECTORS[detector], {}
    for one in re.split(r",(?=\s*[A-Za-z_]+\s*=)", settings):  # not at the commas of a list
        name, _, value = (part.strip() for part in one.partition("="))
        if name not in (*kind.fields, *kind.rules):
            known = ", ".join((*kind.fields, *kind.rules))
            raise TfdetError(f"--set {text}: {detector} has no setting {name}; there are {known}")
        changes[name] = _value(value)
        if name in kind.rules:
            try:
                changes[name] = kind.rules[name](changes[name])
            except (ValueError, TypeError) as error:
                reason = error if isinstance(error, ValueError) else "is not of its kind"
                raise TfdetError(f"--set {text}: {name} {reason}") from error
    return Choice(detector, changes, settings)


def _value(text):
    """A value as in TOML, but that a word needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(choice, spec, dataset):
    """The detector of a row, for a Dataset that was read from `spec`, on a stand-in for its backbone.

    Raises:
        TfdetError: it cannot learn from this data, or the settings contradict each other.
    """
    kind = DETECTORS[choice.detector]
    fields = {name: value for name, value in choice.changes.items() if name in kind.fields}
    settings = commandline.from_values(kind.recipe.Settings, fields, f"--set {choice.detector}.{choice.settings}: ")
    if kind.recipe is mtcnn:  # it learns from crops, which need no network to be drawn
        return mtcnn.inspected(settings, dataset)
    # How long it would be trained does not matter, but a recipe wants to know.
    settings = kind.recipe.resolve(dataclasses.replace(settings, data=spec, steps=1))
    backbone = {"backbone": stand_in(settings.backbone), "backbone_weights": "none"}
    detector = kind.recipe.build(dataclasses.replace(settings, **backbone), dataset)
    for name in kind.rules.keys() & choice.changes.keys():
        setattr(detector.encoder, name, choice.changes[name])
    return detector
