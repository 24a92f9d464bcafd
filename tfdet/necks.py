"""Necks: from a backbone's maps {"C3": ...} to the pyramid {"P3": ...} that a detector's heads look at."""

import keras
from keras import ops

from tfdet.errors import TfdetError


@keras.saving.register_keras_serializable("tfdet")
class FPN(keras.layers.Layer):
    """Feature pyramid network (Lin et al. 2017, arXiv 1612.03144, section 3; layout of torchvision's).

        C5 -> 1x1 --------------------> + -> 3x3 -> P5
                  |                       C4 -> 1x1 -> + (enlarged twofold) -> 3x3 -> P4 ...

    Every level gets the same number of channels. From the coarsest map down, each is enlarged to the size of the next
    and added to it, so that fine maps know what coarse ones saw.

    Args:
        levels: the backbone's maps to use, finest first: ("C3", "C4", "C5") gives P3 to P5. Others are ignored.
        channels: of every level.
        extra: what lies above the coarsest level, which is P5 here. "pool": P6 is every second pixel of P5 (Faster
            R-CNN); "conv": P6 and P7 are 3x3 convolutions of stride 2, with a ReLU between (RetinaNet); None: nothing.
        p6_from: "C5" or "P5", the map that "conv" makes P6 of.
    Raises: TfdetError if a level is missing, or for arguments that cannot be.
    """

    def __init__(self, levels=("C2", "C3", "C4", "C5"), channels=256, extra=None, p6_from="C5", **kwargs):
        super().__init__(**kwargs)
        self.levels, self.channels, self.extra, self.p6_from = tuple(levels), channels, extra, p6_from
        self.numbers = [int(level[1:]) for level in levels]  # 3 for stride 2^3
        coarsest = self.numbers[-1]
        if self.numbers != list(range(self.numbers[0], coarsest + 1)):
            raise TfdetError(f"FPN: levels must follow each other, finest first, not {list(levels)}")
        if extra not in (None, "pool", "conv"):
            raise TfdetError(f"FPN: extra must be pool, conv or None, not {extra!r}")
        if extra == "conv" and p6_from not in (f"C{coarsest}", f"P{coarsest}"):
            raise TfdetError(f"FPN: P{coarsest + 1} can be made of C{coarsest} or P{coarsest}, not of {p6_from!r}")
        self.laterals = [self._convolution(1, f"lateral_{n}") for n in self.numbers]
        self.smoothings = [self._convolution(3, f"smoothing_{n}") for n in self.numbers]
        added = (coarsest + 1, coarsest + 2) if extra == "conv" else ()
        self.extras = [self._convolution(3, f"extra_{n}", stride=2) for n in added]

    def _convolution(self, size, name, stride=1):
        return keras.layers.Conv2D(
            self.channels,
            size,
            stride,
            padding="same" if stride == 1 else "valid",
            kernel_initializer=keras.initializers.LecunUniform(),  # torchvision's kaiming_uniform_(a=1)
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape):
        missing = [level for level in self.levels if level not in input_shape]
        if missing:
            raise TfdetError(f"FPN: the backbone has no {', '.join(missing)}, only {', '.join(input_shape)}")
        widths = {level: shape[-1] for level, shape in input_shape.items()}
        for level, lateral, smoothing in zip(self.levels, self.laterals, self.smoothings, strict=True):
            lateral.build((None, None, None, widths[level]))
            smoothing.build((None, None, None, self.channels))
        above = widths.get(self.p6_from, self.channels)
        for extra in self.extras:
            extra.build((None, None, None, above))
            above = self.channels

    def call(self, features):
        """The backbone's {"C3": [B, H, W, any], ...} -> {"P3": [B, H, W, channels], ...}, finest first.

        Every level has half the size of the one before, rounded up if the backbone rounds up.
        """
        merged = [lateral(features[level]) for level, lateral in zip(self.levels, self.laterals, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] += _enlarge(merged[i + 1], *ops.shape(merged[i])[1:3])
        pyramid = [smoothing(level) for level, smoothing in zip(merged, self.smoothings, strict=True)]
        if self.extra == "pool":
            pyramid.append(pyramid[-1][:, ::2, ::2])
        elif self.extra == "conv":
            first, second = self.extras
            pyramid.append(first(_pad(features.get(self.p6_from, pyramid[-1]))))
            pyramid.append(second(_pad(ops.relu(pyramid[-1]))))
        return {f"P{n}": level for n, level in enumerate(pyramid, self.numbers[0])}

    def torch_names(self, state, prefix="fpn."):
        """Pairs each convolution with the name that torchvision's FeaturePyramidNetwork gives it.

        Args:
            state: the state dict that the names are for; in older ones they have no ".0" at their end.
            prefix: the module's name and a dot.
        """
        end = "" if f"{prefix}inner_blocks.0.weight" in state else ".0"
        pairs = [(layer, f"{prefix}inner_blocks.{i}{end}") for i, layer in enumerate(self.laterals)]
        pairs += [(layer, f"{prefix}layer_blocks.{i}{end}") for i, layer in enumerate(self.smoothings)]
        return pairs + [(layer, f"{prefix}extra_blocks.p{i}") for i, layer in enumerate(self.extras, 6)]

    def get_config(self):
        settings = {"levels": self.levels, "channels": self.channels, "extra": self.extra, "p6_from": self.p6_from}
        return {**super().get_config(), **settings}


def _enlarge(x, height, width):
    """Takes the nearest pixel of x [B, h, w, C], as PyTorch's interpolate does -> [B, height, width, C].

    Gathered by index: that fits any size, and its gradient costs a third of that of a repetition on the CPU.
    """
    rows, columns = (ops.arange(n) * size // n for n, size in zip((height, width), ops.shape(x)[1:3], strict=True))
    return ops.take(ops.take(x, rows, axis=1), columns, axis=2)


def _pad(x):
    """By hand, on both sides alike: "same" pads an even map on one side only when it strides."""
    return ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
