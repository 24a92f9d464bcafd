"""The errors that tfdet raises on purpose. Each message is one line and names the file, the box or the part."""


class TfdetError(Exception):
    """Base of all of them; the command line prints it as one line and exits with status 2."""


class DataError(TfdetError):
    """An annotation or an image cannot be used."""


class WeightsError(TfdetError):
    """A checkpoint cannot be read, or does not fit the network."""


class NonFiniteLossError(TfdetError):
    """A part of the loss became NaN or infinite."""


class ServerError(TfdetError):
    """A server cannot be reached, refuses the request, or answers something else than detections."""
