"""Any functional Keras model as a backbone: of keras.applications, KerasHub, KerasCV, or one's own."""

import difflib
import re

import keras

from ..errors import TfdetError


def from_keras(model, levels=None, preprocess=None):
    """Makes a backbone that hands out some of a model's inner feature maps. Layers and weights are shared with `model`.

    Where a model rounds the sizes of its maps down (some of keras.applications do, for sides that 2^n does not divide),
    they stay so.

    Args:
        model: functional keras.Model with one input, images [B, H, W, 3].
        levels: {"C3": name of a layer, ...}. May be left out for KerasHub's backbones (they have `pyramid_outputs`) and
            KerasCV's (`pyramid_level_inputs`): their P2 .. P5 become C2 .. C5.
        preprocess: a layer applied to RGB images in 0..255 first, such as Rescaling(1 / 127.5, -1); None if the
            model itself takes such images.
    Returns: keras.Model, images -> {"C3": [B, H/8, W/8, channels], ...}, finest first.
    Raises: TfdetError if a layer is missing, with the names that come closest, or no levels are known.
    """
    maps = _pyramid(model) if levels is None else {level: _output(model, name) for level, name in levels.items()}
    if not maps or any(not re.fullmatch(r"C[2-5]", level) for level in maps):
        raise TfdetError(
            f"{model.name}: levels must be C2 .. C5 with a layer name each, as {{'C3': ...}}, not {levels}"
        )
    (inputs,) = model.inputs
    features = keras.Model(inputs, {level: maps[level] for level in sorted(maps)}, name=f"{model.name}_features")
    if preprocess is None:
        return features
    image = keras.Input(inputs.shape[1:], name="image")
    return keras.Model(image, features(preprocess(image)), name=f"{model.name}_backbone")


def is_backbone(model):
    """Whether the model's outputs already are a dict of C2 .. C5, or of stack1, ..., as the keypoint detectors read."""
    return isinstance(model.output, dict) and any(
        all(re.fullmatch(kind, str(name)) for name in model.output) for kind in (r"C[2-5]", r"stack\d+")
    )


def _pyramid(model):
    """The maps that KerasHub's and KerasCV's backbones declare. KerasHub gives tensors, KerasCV the names of layers."""
    tensors = getattr(model, "pyramid_outputs", None)
    if tensors is None:
        names = getattr(model, "pyramid_level_inputs", {})
        tensors = {level: _output(model, name) for level, name in names.items()}
    return {f"C{level[1:]}": tensor for level, tensor in tensors.items() if re.fullmatch(r"P[2-5]", level)}


def _output(model, name):
    names = [layer.name for layer in model.layers]
    if name not in names:
        close = ", ".join(difflib.get_close_matches(name, names)) or "no name is close"
        raise TfdetError(f"{model.name} has no layer {name!r}; the closest: {close}")
    return model.get_layer(name).output
