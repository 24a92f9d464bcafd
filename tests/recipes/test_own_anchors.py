"""Sizes of priors and anchors as settings of the recipes."""

import dataclasses
import importlib

import pytest

from tfdet.backbones.stand_in import stand_in
from tfdet.errors import TfdetError

SIZES = {
    "ssd300": {"prior_sizes": (9.5, 20, 40, 80, 120, 160, 240)},
    "faster_rcnn": {"anchor_sizes": (16, 32, 64, 128, 256)},
    "retinanet": {"anchor_sizes": (16.5, 32, 64, 128, 256)},
}


def build(name, dataset, **given):
    recipe = importlib.import_module(f"tfdet.recipes.{name}")
    settings = recipe.resolve(recipe.Settings(**given))
    if settings.backbone != "vgg16":  # that of another detector
        settings = dataclasses.replace(settings, backbone=stand_in(settings.backbone))
    return recipe.build(settings, dataset)


@pytest.mark.parametrize("name", SIZES)
def test_the_detector_has_them(make_dataset, name):
    ((setting, sizes),) = SIZES[name].items()
    detector = build(name, make_dataset((64, 64, [], [])), **SIZES[name])
    if setting == "prior_sizes":
        found = [prior.min_size for prior in detector.settings["priors"]] + [detector.settings["priors"][-1].max_size]
    else:
        found = [generator.sizes[0] for generator in detector.pyramid.generators]
    assert tuple(found) == sizes
    if name == "retinanet":
        assert detector.pyramid.generators[1].sizes == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("ssd300", {"prior_sizes": (9, 8, 40, 80, 120, 160, 240)}, "sizes of priors must be seven that rise: 9, 8, 40"),
        ("ssd300", {"prior_sizes": (9, 20)}, "sizes of priors must be seven that rise: 9, 20"),
        ("ssd300", {"prior_sizes": (0, 8, 40, 80, 120, 160, 240)}, "--prior-sizes must be at least 1"),
        ("ssd300", {**SIZES["ssd300"], "weights": "ssd.pth"}, "--prior-sizes: ssd.pth comes with its own"),
        ("faster_rcnn", {"anchor_sizes": (8,)}, r"1 sizes of anchors \(8\) for 5 levels"),
        ("faster_rcnn", {**SIZES["faster_rcnn"], "backbone": "vgg16"}, "--anchor-sizes: vgg16 comes with its own"),
        ("retinanet", {**SIZES["retinanet"], "weights": "x.pth"}, "--anchor-sizes: x.pth comes with its own"),
    ],
)
def test_those_that_cannot_be(make_dataset, name, given, said):
    with pytest.raises(TfdetError, match=said):
        build(name, make_dataset((64, 64, [], [])), **given)
