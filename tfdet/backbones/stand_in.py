"""A backbone that is none: all that is right of its maps is how large they are."""

import keras

# Strides of the maps C2 to C5, those that a pyramid or SSD reads. Any other backbone has one map of stride 4.
LEVELS = {name: (4, 8, 16, 32) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet_slim")}
LEVELS |= {"mobilenet_v2": (8, 16, 32), "vgg16": (8, 16), "vgg_slim": (8, 16)}


class StandIn(keras.Model):
    """What stands where a backbone does: see `stand_in`. A detector on it makes no weights."""


def stand_in(name):
    """Builds something without weights that can stand where the backbone of that name does.

    What a detector should learn of an image depends on the sizes of the maps, and on nothing else of the network, which
    need not be built to say what that is. (Of several stacks this has the first only.)

    Returns: StandIn, images [B, H, W, 3] -> {"C3": [B, H/8, W/8, 3], ...} or {"stack1": [B, H/4, W/4, 3]}; sizes are
        rounded up.
    """
    strides = {f"C{stride.bit_length() - 1}": stride for stride in LEVELS.get(name, ())} or {"stack1": 4}
    image = keras.Input((None, None, 3))
    maps = {level: keras.layers.AveragePooling2D(s, padding="same")(image) for level, s in strides.items()}
    return StandIn(image, maps, name=name)
