import math
import zlib

import numpy as np
import pytest


@pytest.fixture
def seeded():
    """A function (name of a PyTorch tensor, its shape) -> numbers that depend on nothing else.

    The reference numbers in these tests come from torchvision 0.28 with weights made by this very function.
    """

    def make(name, shape):
        numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) > 1:
            numbers *= math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith("running_var"):
            numbers = 1 + 0.1 * abs(numbers)
        else:
            numbers = 0.1 * numbers + name.endswith("weight")
        return np.asarray(numbers, np.float32)

    return make


@pytest.fixture
def image():
    """A function (side) -> noise [1, side, side, 3] in 0..255."""
    return lambda side: np.random.RandomState(0).uniform(0, 255, (1, side, side, 3)).astype(np.float32)
