"""From an image of any size to the one a detector is fed. The same object serves training, prediction and serving."""

from keras import ops


class Warp:
    """Resize to `size` x `size`, the aspect ratio not kept (SSD). Bilinear, pixel centres at halves, no antialias."""

    def __init__(self, size):
        self.size = size

    def __call__(self, images):
        """images [..., H, W, 3] of any dtype, 0..255 -> float32 [..., size, size, 3]."""
        return ops.image.resize(
            ops.cast(images, "float32"), (self.size, self.size), interpolation="bilinear", data_format="channels_last"
        )

    def scale(self, height, width):
        """What box coordinates xyxy are multiplied by: sizes [...] of the original in pixels -> float32 [..., 4]."""
        x, y = self.size / ops.cast(width, "float32"), self.size / ops.cast(height, "float32")
        return ops.stack([x, y, x, y], axis=-1)
