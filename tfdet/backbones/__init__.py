"""Backbones: keras.Models from RGB images, float32 [B, H, W, 3] in 0..255, to a dict of feature maps.

The map "Cn" has stride 2^n: {"C3": [B, H/8, W/8, channels], "C4": [B, H/16, W/16, channels], ...}, finest first.
Those of the keypoint detectors give maps of stride 4 only: {"stack1": [B, H/4, W/4, channels], ...}.
"""

import keras

from ..errors import TfdetError
from .dla import dla34
from .hourglass import hourglass54, hourglass104, hourglass_slim
from .keras_models import from_keras, is_backbone
from .mobilenet import mobilenet_v2
from .resnet import resnet18, resnet34, resnet50, resnet101, resnet_slim
from .resnet_up import mobilenet_v2_up, resnet18_dcn, resnet18_up, resnet101_dcn, resnet101_up, resnet_slim_up
from .slim import vgg_slim
from .vgg import L2Normalization, vgg16, vgg16_fully_connected, vgg16_reduced

__all__ = [
    "L2Normalization",
    "build",
    "dla34",
    "from_keras",
    "hourglass54",
    "hourglass104",
    "hourglass_slim",
    "mobilenet_v2",
    "mobilenet_v2_up",
    "resnet18",
    "resnet18_dcn",
    "resnet18_up",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet101_dcn",
    "resnet101_up",
    "resnet_slim",
    "resnet_slim_up",
    "vgg16",
    "vgg16_fully_connected",
    "vgg16_reduced",
    "vgg_slim",
]


def build(backbone, weights=None):
    """Builds the backbone that a detector was asked for.

    Args:
        backbone: "vgg16" (SSD's, `vgg16_reduced`), "mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101",
            "vgg_slim", "resnet_slim"; for the keypoint detectors "dla34", "hourglass104", "hourglass54",
            "hourglass_slim", "resnet18_dcn", "resnet101_dcn", "resnet18_up", "resnet101_up", "mobilenet_v2_up",
            "resnet_slim_up"; or a Keras model: one whose outputs are named C2 .. C5, or stack1, ..., is taken as it is,
            one of KerasHub or KerasCV goes through `from_keras`.
        weights: as the named function takes them; None for a Keras model, which brings its own.
    Raises: TfdetError for an unknown name, or for weights where none can be loaded.
    """
    if isinstance(backbone, keras.Model):
        if weights is not None:
            raise TfdetError(f"{backbone.name}: a Keras model brings its own weights; load {weights} into it first")
        return backbone if is_backbone(backbone) else from_keras(backbone)
    match backbone:
        case "vgg16":
            return vgg16_reduced(weights)
        case "mobilenet_v2":
            return mobilenet_v2(weights)
        case "resnet18":
            return resnet18(weights)
        case "resnet34":
            return resnet34(weights)
        case "resnet50":
            return resnet50(weights)
        case "resnet101":
            return resnet101(weights)
        case "dla34":
            return dla34(weights)
        case "hourglass104":
            return hourglass104(weights)
        case "resnet18_dcn":
            return resnet18_dcn(weights)
        case "resnet101_dcn":
            return resnet101_dcn(weights)
        case "resnet18_up":
            return resnet18_up(weights)
        case "resnet101_up":
            return resnet101_up(weights)
        case "mobilenet_v2_up":
            return mobilenet_v2_up(weights)
    unpublished = {
        "vgg_slim": vgg_slim,
        "resnet_slim": resnet_slim,
        "resnet_slim_up": resnet_slim_up,
        "hourglass54": hourglass54,
        "hourglass_slim": hourglass_slim,
    }
    if backbone in unpublished:
        if weights is not None:
            raise TfdetError(f"{backbone} has no published weights: train it from scratch, or pass a trained model")
        return unpublished[backbone]()
    names = (
        "vgg16, mobilenet_v2, resnet18, resnet34, resnet50, resnet101, vgg_slim, resnet_slim, "
        "or for keypoints dla34, hourglass104, hourglass54, hourglass_slim, resnet18_dcn, resnet101_dcn, "
        "resnet18_up, resnet101_up, mobilenet_v2_up, resnet_slim_up"
    )
    raise TfdetError(f"unknown backbone {backbone!r}: choose {names}, or pass a keras.Model")
