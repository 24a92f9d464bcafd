"""The errors that tfdet raises on purpose. Each message is one line and names the file, the box or the part."""

import keras


def one_line(text):
    """The text with whatever cannot be printed in a line (ends of lines, codes for the terminal) as \\n, \\x1b, ..."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TfdetError(Exception):
    """Base of all of them; the command line prints it as one line and exits with status 2."""

    def __init__(self, message):
        super().__init__(one_line(message))


class DataError(TfdetError):
    """An annotation or an image cannot be used."""


class WeightsError(TfdetError):
    """A checkpoint cannot be read, or does not fit the network."""


class NonFiniteLossError(TfdetError):
    """A part of the loss became NaN or infinite."""


class ServerError(TfdetError):
    """A server cannot be reached, refuses the request, or answers something else than detections."""


def require_tensorflow(what):
    """Raises TfdetError where Keras computes with another backend: training steps do not need TensorFlow, NMS does."""
    if keras.backend.backend() != "tensorflow":
        raise TfdetError(
            f"{what} needs Keras on TensorFlow: save the model, and load it with KERAS_BACKEND=tensorflow "
            f"(here it is {keras.backend.backend()})"
        )
