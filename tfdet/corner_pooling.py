"""Corner pooling (CornerNet, section 3.2): what a corner of a box needs to see, along its row and its column.

The corner of a box seldom lies on the object. The top left one is where the object's topmost edge, to the right of it,
and its leftmost edge, below it, meet: each of its cells is given the largest value of all to its right, or below it.
"""

import keras
from keras import ops

from tfdet.backbones.keypoints import convolution

LOWEST = float("-inf")
BLOCK, LEVELS = 8, 4  # lines of up to 8^4 cells, where a graph does not know how long they are
DIRECTIONS = {"top": (1, True), "left": (2, True), "bottom": (1, False), "right": (2, False)}  # axis, from the end on


@keras.saving.register_keras_serializable("tfdet")
class CornerPooling(keras.layers.Layer):
    """The running maximum of each channel along columns or rows: maps [B, H, W, C] -> [B, H, W, C].

    The gradient goes to the cell that was the largest; of equal ones to the farthest, as in the released code.

    Args:
        direction: the edge of a box that is looked for. "top": a cell is given the largest value of its own and of all
            below it; "left": of all to its right; "bottom": of all above it; "right": of all to its left.
    """

    def __init__(self, direction, **kwargs):
        super().__init__(**kwargs)
        self.direction = direction

    def call(self, features):
        axis, reverse = DIRECTIONS[self.direction]
        shape = ops.shape(features)
        batch, height, width, channels = shape
        lines = (batch, height, width * channels) if axis == 1 else (batch * height, width, channels)
        pool = ops.custom_gradient(lambda x: _pool(x, reverse))
        return ops.reshape(pool(ops.reshape(features, lines)), shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "direction": self.direction}


def _pool(x, reverse):
    """The running maximum of x [N, L, D] along L, and the function that takes its gradient to that of x."""
    largest = _running_maximum(x, reverse)

    def gradient(*slopes, upstream=None):
        """Each place that sets a new maximum is given the slopes of all places up to where the next one does."""
        slope = slopes[0] if upstream is None else upstream
        changed = ops.cast(largest[:, 1:] != largest[:, :-1], slope.dtype)
        first, same = ops.ones_like(slope[:, :1]), 1 - changed
        new = ops.concatenate([changed, first] if reverse else [first, changed], axis=1)
        return new * _running_sum(slope, _pad(same, 1, 0.0, at_start=reverse), not reverse)

    return largest, gradient


def _running_maximum(x, reverse, levels=LEVELS):
    """Of x [N, L, D] the largest value of each place in L and all before it, or, in reverse, all after it.

    Blocks of eight run side by side, then their last places on their own, an eighth as many; each block then looks at
    what came before it. So every value is touched a few times however long the lines are, in steps as few as log L.
    """
    if levels == 0 or x.shape[1] == 1:
        return x
    places = _places(x, LOWEST, reverse)
    for i in range(1, BLOCK):
        places[i] = ops.maximum(places[i - 1], places[i])
    before = _shift(_running_maximum(places[-1], reverse, levels - 1), LOWEST, reverse)
    return _joined([ops.maximum(before, place) for place in places], x, reverse)


def _running_sum(x, share, reverse, levels=LEVELS):
    """Of x [N, L, D] the sum of each place and of `share` times the sum of the one before it; in blocks, as above."""
    if levels == 0 or x.shape[1] == 1:
        return x
    places, shares = _places(x, 0.0, reverse), _places(share, 0.0, reverse)
    for i in range(1, BLOCK):
        places[i] = places[i] + shares[i] * places[i - 1]
        shares[i] = shares[i] * shares[i - 1]  # of what came before the block
    before = _shift(_running_sum(places[-1], shares[-1], reverse, levels - 1), 0.0, reverse)
    return _joined([place + share * before for place, share in zip(places, shares, strict=True)], x, reverse)


def _places(x, padding, reverse):
    """[N, L, D] in blocks: a list of all first places [N, L / 8, D], all second ones ..., or from the last ones on."""
    _, length, depth = ops.shape(x)
    missing = -length % BLOCK
    blocks = ops.reshape(_pad(x, missing, padding, at_start=reverse), (-1, (length + missing) // BLOCK, BLOCK, depth))
    places = ops.unstack(blocks, BLOCK, axis=2)
    return places[::-1] if reverse else places


def _joined(places, x, reverse):
    """The reverse of `_places`: as long as x."""
    length, depth = ops.shape(x)[1:]
    joined = ops.reshape(ops.stack(places[::-1] if reverse else places, axis=2), (-1, length + -length % BLOCK, depth))
    return joined[:, -length:] if reverse else joined[:, :length]


def _shift(x, padding, reverse):
    """What each place of [N, L, D] has before it; the first one has padding."""
    return _pad(x[:, 1:] if reverse else x[:, :-1], 1, padding, at_start=not reverse)


def _pad(x, count, value, at_start):
    return ops.pad(x, [[0, 0], [count, 0] if at_start else [0, count], [0, 0]], constant_values=value)


def corner_pooling_module(x, channels, directions, name):
    """A map [B, H, W, any] pooled in two directions, and the map itself, joined as in a residual block (figure 6).

    Args:
        x: output of a Keras layer.
        channels: of the result; half of it is pooled.
        directions: of both pools.
        name: what the names of the layers begin with; they are those of the released code, `models/CornerNet.py`.
    Returns: [B, H, W, channels].
    """
    pooled = []
    for i, direction in enumerate(directions, 1):
        narrow = convolution(x, channels // 2, 3, 1, f"{name}.p{i}_conv1.conv", f"{name}.p{i}_conv1.bn")
        pooled.append(CornerPooling(direction, name=f"{name}.pool{i}")(narrow))
    pooled = keras.layers.Add(name=f"{name}.pools")(pooled)
    pooled = convolution(pooled, channels, 3, 1, f"{name}.p_conv1", f"{name}.p_bn1", relu=False)
    beside = convolution(x, channels, 1, 1, f"{name}.conv1", f"{name}.bn1", relu=False)
    x = keras.layers.ReLU(name=f"{name}.relu1")(keras.layers.Add(name=f"{name}.add")([pooled, beside]))
    return convolution(x, channels, 3, 1, f"{name}.conv2.conv", f"{name}.conv2.bn")
