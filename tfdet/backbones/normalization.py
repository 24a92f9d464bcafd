"""Batch normalisation as the backbones use it."""

import keras


@keras.saving.register_keras_serializable("tfdet")
class BatchNorm(keras.layers.BatchNormalization):
    """Keras' layer, with one set of statistics over all replicas, and PyTorch's momentum and epsilon as defaults.

    At inference it is TensorFlow's one operation, which joins the convolution before it.
    """

    def __init__(self, momentum=0.9, epsilon=1e-5, **kwargs):
        # Keras knows that only for TensorFlow and raises elsewhere.
        everywhere = keras.backend.backend() == "tensorflow"
        super().__init__(momentum=momentum, epsilon=epsilon, synchronized=everywhere, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if training or keras.backend.backend() != "tensorflow" or self.compute_dtype == "float64":
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        # tf.nn.fused_batch_norm would not take an epsilon below 1.001e-5
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=self.moving_mean.value,
            variance=self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=False,
        ).y

    def get_config(self):
        config = super().get_config()
        del config["synchronized"]  # follows from the backend that loads it
        return config


@keras.saving.register_keras_serializable("tfdet")
class FrozenBatchNorm(BatchNorm):
    """Batch normalisation that stays as it was loaded: a detector's batches are too small to measure statistics with.

    Whatever `trainable` is set to, it neither trains its scale and offset nor updates its statistics.
    """

    @property
    def trainable(self):
        return False

    @trainable.setter
    def trainable(self, value):
        """Does nothing: Keras sets it in every layer of a model that is thawed."""
