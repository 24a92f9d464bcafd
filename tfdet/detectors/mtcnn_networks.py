"""The three networks of MTCNN (Zhang et al. 2016, figure 2; sizes and strides as in the released Caffe models).

Each looks at a square of a photograph, P-Net at 12 x 12 pixels, R-Net at 24 x 24, O-Net at 48 x 48, and says

    face        logits [..., 2]: no face, face
    box         [..., 4], where the face is: x1, y1, x2, y2 of its box less those of the square, in units of its side
    landmarks   [..., 10], the five x, then the five y, from the square's top left corner, in units of its side

P-Net is convolutional throughout: of a larger image it says this for every square that begins at an even row and
column. In the paper all three find landmarks; in the released models only O-Net does, as nobody needs those of the
others but to learn better.

Images are float32 [B, H, W, 3], RGB 0..255. Parameters without the landmarks of P-Net and R-Net: 6,632, 100,178 and
389,040.
"""

import keras
from keras import layers, ops

from tfdet.prelu import PReLU

OUTPUTS = {"face": 2, "box": 4, "landmarks": 10}


def pnet(landmarks=False):
    """Images [B, H, W, 3] -> {name: [B, h, w, ...]}; h = ceil((H - 2) / 2) - 4, so that the last square may be cut."""
    images, x = _pixels(None)
    x = _convolution(x, 10, 3, "1", pool=2)
    x = _convolution(x, 16, 3, "2")
    x = _convolution(x, 32, 3, "3")
    outputs = {name: layers.Conv2D(size, 1, name=name) for name, size in _outputs(landmarks).items()}
    return keras.Model(images, {name: _float32(layer(x)) for name, layer in outputs.items()}, name="pnet")


def rnet(landmarks=False):
    """Images [B, 24, 24, 3] -> {name: [B, ...]}."""
    images, x = _pixels(24)
    x = _convolution(x, 28, 3, "1", pool=3)
    x = _convolution(x, 48, 3, "2", pool=3)
    x = _convolution(x, 64, 2, "3")
    return _with_dense(images, x, 128, "4", _outputs(landmarks), "rnet")


def onet():
    """Images [B, 48, 48, 3] -> {name: [B, ...]}."""
    images, x = _pixels(48)
    x = _convolution(x, 32, 3, "1", pool=3)
    x = _convolution(x, 64, 3, "2", pool=3)
    x = _convolution(x, 64, 3, "3", pool=2)
    x = _convolution(x, 128, 2, "4")
    return _with_dense(images, x, 256, "5", OUTPUTS, "onet")


def _outputs(landmarks):
    return {name: size for name, size in OUTPUTS.items() if landmarks or name != "landmarks"}


def _pixels(side):
    images = keras.Input((side, side, 3), name="images")
    return images, layers.Rescaling(1 / 128, -127.5 / 128, dtype="float32")(images)


def _convolution(x, channels, size, number, pool=None):
    """Convolution, PReLU and, with stride 2 and counting what is cut off at the border, the maximum of pool x pool."""
    x = PReLU(name=f"prelu{number}")(layers.Conv2D(channels, size, name=f"conv{number}")(x))
    if pool is None:
        return x
    # "same" would begin outside of the image, if 3 x 3 fit into an odd side.
    fits = pool == 3 and x.shape[1] % 2
    return layers.MaxPooling2D(pool, 2, padding="valid" if fits else "same")(x)


def _with_dense(images, x, width, number, outputs, name):
    x = PReLU(name=f"prelu{number}")(layers.Dense(width, name=f"dense{number}")(layers.Flatten()(x)))
    outputs = {output: layers.Dense(size, name=output) for output, size in outputs.items()}
    return keras.Model(images, {output: _float32(layer(x)) for output, layer in outputs.items()}, name=name)


def _float32(x):
    return ops.cast(x, "float32")
