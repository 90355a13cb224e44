"""What makes a Keras layer linear in its kernel, and how to evaluate it as such.

Flipout, local reparameterization and rank-1 factors need the affine part of a layer, without its activation, for
weights of their choice. It is taken from the layer's own `call`, so that strides, padding, groups and data formats
are Keras' business. A `Stage` is one such affine map; most layers are one, a separable convolution is two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers, ops

from bdl.estimators.stateless import call_with_values
from bdl.keras_internals import view
from bdl.random import Tensor

Values = dict[str, Tensor]
"""Weight values by name (`kernel`, `bias`); what is missing counts as zero."""


@keras.saving.register_keras_serializable(package="bdl")
class Scale(layers.Layer):
    """Multiplies each entry of an example by a weight of its own, which starts at 1: linear, with a diagonal kernel."""

    activation = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Adds `kernel`, of an example's shape."""
        self.kernel = self.add_weight(name="kernel", shape=tuple(input_shape[1:]), initializer="ones")
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Inputs times the weights."""
        return inputs * ops.convert_to_tensor(self.kernel)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of the inputs."""
        return tuple(input_shape)


@dataclass(frozen=True)
class Stage:
    """One affine map inside a layer.

    Args:
        weights: Names of the weights in which it is jointly linear, the kernel first.
        apply: Evaluates it for given weight values, without activation.
        input_axes: Axes of the input along which the kernel has weights of their own (negative: from the end). Along
            all others but the batch it is the same map at each position.
        output_axes: The same of the output.
        bias_shape: Shape that makes the bias broadcast over the output, or None where it does so already.
        vocabulary: Number of tokens where the input is token numbers, which stand for one-hot vectors; else None.
    """

    weights: tuple[str, ...]
    apply: Callable[[Values, Tensor], Tensor]
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    bias_shape: tuple[int, ...] | None = None
    vocabulary: int | None = None

    def input_factor_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        """Shape of a factor on what the map takes in, without the batch; of an embedding one for each token."""
        return feature_shape(input_shape, self.input_axes) if self.vocabulary is None else (self.vocabulary,)

    def add_bias(self, outputs: Tensor, bias: Tensor) -> Tensor:
        """Adds a bias to outputs that were computed without one."""
        bias = bias if self.bias_shape is None else ops.reshape(bias, self.bias_shape)
        return outputs + ops.cast(bias, outputs.dtype)


def stages(layer: keras.Layer) -> list[Stage]:
    """The affine maps of a built layer, in the order in which they apply.

    Args:
        layer: A built Dense, EinsumDense or convolution layer.

    Raises:
        ValueError: if the layer is not linear in its kernel.

    Example:
    >>> layer = layers.Dense(2)
    >>> layer.build((None, 3))
    >>> stages(layer)[0].weights
    ('kernel', 'bias')
    """
    if isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
        return _separable_stages(layer)
    names = tuple(weight_name(weight) for weight in layer.weights)
    if not is_linear(layer) or not set(names) <= {"kernel", "bias"}:
        raise ValueError(
            f"`layer` must be linear in its kernel for this estimator: a Dense, EinsumDense or convolution layer "
            f"without LoRA, not {type(layer).__name__} with weights {names}. Use estimator='reparameterization'."
        )
    input_axes, output_axes = feature_axes(layer)
    bias_shape = _channel_bias_shape(layer) if isinstance(layer, _CHANNEL_LAYERS) else None
    return [Stage(names, lambda values, inputs: _affine(layer, values, inputs), input_axes, output_axes, bias_shape)]


def factor_stages(layer: keras.Layer) -> list[Stage]:
    """The affine maps of a built layer that may stand between factors: those of `stages`, and of an embedding.

    An embedding is linear in the one-hot vector that a token number stands for, and only there.

    Args:
        layer: A built Dense, EinsumDense, convolution or Embedding layer.

    Raises:
        ValueError: as `stages` does.

    Example:
    >>> layer = layers.Embedding(10, 3)
    >>> layer.build((None, 4))
    >>> factor_stages(layer)[0].input_factor_shape((None, 4))
    (10,)
    """
    if not isinstance(layer, layers.Embedding) or [weight_name(weight) for weight in layer.weights] != ["embeddings"]:
        return stages(layer)
    return [
        Stage(("embeddings",), lambda values, inputs: _affine(layer, values, inputs), (), (-1,), None, layer.input_dim)
    ]


def is_linear(layer: keras.Layer) -> bool:
    """Whether the affine part of this layer is known: Dense, EinsumDense, the convolutions, and `Scale`."""
    return isinstance(layer, (layers.Dense, layers.EinsumDense, Scale, *_CHANNEL_LAYERS))


def is_plain_dense(layer: keras.Layer) -> bool:
    """Whether it is Keras' own Dense or EinsumDense, not a class derived from it, with a kernel and a bias only."""
    names = {weight_name(weight) for weight in layer.weights}
    return type(layer) in (layers.Dense, layers.EinsumDense) and names <= {"kernel", "bias"}


def is_exact_for_local_reparameterization(layer: keras.Layer, inputs: Tensor) -> bool:
    """Whether independent noise on each output has the joint distribution of a random kernel.

    Dense on vectors, where each output has weights of its own; so has each of `Scale`.
    """
    return isinstance(layer, Scale) or (isinstance(layer, layers.Dense) and len(inputs.shape) == 2)


def feature_axes(layer: keras.Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes of the input and of the output of a linear layer along which its kernel has weights of their own."""
    if isinstance(layer, layers.Dense):
        return (-1,), (-1,)
    if isinstance(layer, Scale):
        axes = tuple(range(1, 1 + len(layer.kernel.shape)))
        return axes, axes
    if isinstance(layer, layers.EinsumDense):
        inputs, kernel, outputs = _einsum_labels(layer)
        return _label_axes(inputs, kernel), _label_axes(outputs, kernel)
    axis = -1 if layer.data_format == "channels_last" else 1
    return (axis,), (axis,)


def kernel_input_axes(layer: keras.Layer, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Axes of a weight that are summed over (its fan-in); for an unknown layer all but the last, as Keras counts.

    Args:
        layer: The layer that owns the weight.
        name: Name of the weight, such as `"kernel"`.
        shape: Shape of the weight. A vector has no fan-in, nor has an embedding, of which one row is looked up, nor
            `Scale`.

    Example:
    >>> kernel_input_axes(layers.Conv2DTranspose(8, 3), "kernel", (3, 3, 8, 4))
    (0, 1, 3)
    """
    rank = len(shape)
    if name.endswith("bias") or rank < 2 or isinstance(layer, (layers.Embedding, Scale)):
        return ()
    if isinstance(layer, layers.EinsumDense):
        _, kernel, outputs = _einsum_labels(layer)
        return tuple(axis for axis, label in enumerate(kernel) if label not in outputs)
    if isinstance(layer, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)):
        return (*range(rank - 2), rank - 1)
    if isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)) or name == "depthwise_kernel":
        return tuple(range(rank - 2))
    return tuple(range(rank - 1))


def weight_name(weight: keras.Variable) -> str:
    """Last part of a variable's path: `kernel`, `bias`, `recurrent_kernel`, ..."""
    return weight.path.rsplit("/", 1)[-1]


def feature_shape(shape: Sequence[Any], axes: Sequence[int]) -> tuple[Any, ...]:
    """Shape of a factor that varies along the given axes of a tensor and is one on all others, without the batch.

    Example:
    >>> feature_shape((32, 28, 28, 3), axes=(-1,))
    (1, 1, 3)
    """
    kept = {axis % len(shape) for axis in axes}
    return tuple(size if axis in kept else 1 for axis, size in enumerate(shape))[1:]


_CHANNEL_LAYERS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)


def _affine(layer: keras.Layer, values: Values, inputs: Tensor) -> Tensor:
    known = {id(weight): _value_or_zeros(values, weight) for weight in layer.weights}
    return call_with_values(view(layer, activation=None), known, inputs).outputs


def _value_or_zeros(values: Values, weight: keras.Variable) -> Tensor:
    value = values.get(weight_name(weight))
    return ops.zeros(weight.shape, dtype=weight.dtype) if value is None else value


def _separable_stages(layer: Any) -> list[Stage]:
    axes = (-1 if layer.data_format == "channels_last" else 1,)

    def depthwise(values: Values, inputs: Tensor) -> Tensor:
        return ops.depthwise_conv(
            inputs,
            ops.cast(values["depthwise_kernel"], inputs.dtype),
            strides=layer.strides,
            padding=layer.padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )

    def pointwise(values: Values, inputs: Tensor) -> Tensor:
        kernel = ops.cast(values["pointwise_kernel"], inputs.dtype)
        # With the channels last, for not every processor has TensorFlow's kernels for channels first.
        outputs = ops.conv(ops.moveaxis(inputs, axes[0], -1), kernel, padding="valid", data_format="channels_last")
        outputs = ops.moveaxis(outputs, -1, axes[0])
        return second.add_bias(outputs, values["bias"]) if "bias" in values else outputs

    names = ("pointwise_kernel", "bias") if layer.use_bias else ("pointwise_kernel",)
    second = Stage(names, pointwise, axes, axes, _channel_bias_shape(layer))
    return [Stage(("depthwise_kernel",), depthwise, axes, axes), second]


def _channel_bias_shape(layer: Any) -> tuple[int, ...]:
    spatial = (1,) * len(layer.kernel_size)
    return (1, *spatial, -1) if layer.data_format == "channels_last" else (1, -1, *spatial)


def _einsum_labels(layer: Any) -> tuple[str, str, str]:
    """Labels of the input, the kernel and the output of an EinsumDense equation; `...` stays in the first and last."""
    inputs, rest = layer.equation.replace(" ", "").split(",")
    kernel, outputs = rest.split("->")
    return inputs, kernel.replace("...", ""), outputs


def _label_axes(labels: str, kernel: str) -> tuple[int, ...]:
    """Axes of the labels that the kernel has too; counted from the end where an ellipsis stands before them."""
    if "..." not in labels:
        return tuple(axis for axis, label in enumerate(labels) if label in kernel)
    before, after = labels.split("...")
    front = tuple(axis for axis, label in enumerate(before) if label in kernel)
    back = tuple(axis - len(after) for axis, label in enumerate(after) if label in kernel)
    return front + back
