"""Backbones: keras.Models from RGB images, float32 [B, H, W, 3] in 0..255, to a dict of feature maps.

The map "Cn" has stride 2^n: {"C3": [B, H/8, W/8, channels], "C4": [B, H/16, W/16, channels], ...}, finest first.
"""

import keras

from ..errors import TfdetError
from .keras_models import from_keras, is_backbone
from .mobilenet import mobilenet_v2
from .slim import vgg_slim
from .vgg import L2Normalization, vgg16, vgg16_reduced

__all__ = ["L2Normalization", "build", "from_keras", "mobilenet_v2", "vgg16", "vgg16_reduced", "vgg_slim"]


def build(backbone, weights=None):
    """Builds the backbone that a detector was asked for.

    Args:
        backbone: "vgg16" (SSD's, `vgg16_reduced`), "mobilenet_v2", "vgg_slim"; or a Keras model: one whose outputs
            are named C2 .. C5 is taken as it is, one of KerasHub or KerasCV goes through `from_keras`.
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
        case "vgg_slim":
            if weights is not None:
                raise TfdetError("vgg_slim has no published weights: train it from scratch, or pass a trained model")
            return vgg_slim()
    raise TfdetError(f"unknown backbone {backbone!r}: choose vgg16, mobilenet_v2, vgg_slim, or pass a keras.Model")
