"""Depthwise and separable convolution layers with a posterior over their kernels."""

from __future__ import annotations

from keras import layers

from bdl.layers.named import NamedVariational


class DepthwiseConv1DReparameterization(NamedVariational, wraps=layers.DepthwiseConv1D, estimator="reparameterization"):
    """`keras.layers.DepthwiseConv1D` with one sampled kernel per call.

    Shapes are those of `keras.layers.DepthwiseConv1D`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> DepthwiseConv1DReparameterization(3, depth_multiplier=2)(np.ones((2, 6, 4))).shape == (2, 4, 8)
    True
    """


class DepthwiseConv1DFlipout(NamedVariational, wraps=layers.DepthwiseConv1D, estimator="flipout"):
    """`keras.layers.DepthwiseConv1D` with one kernel perturbation per call, and random signs for each example.

    Shapes are those of `keras.layers.DepthwiseConv1D`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> DepthwiseConv1DFlipout(3, depth_multiplier=2)(np.ones((2, 6, 4))).shape == (2, 4, 8)
    True
    """


class DepthwiseConv1DLocalReparameterization(
    NamedVariational, wraps=layers.DepthwiseConv1D, estimator="local_reparameterization"
):
    """`keras.layers.DepthwiseConv1D` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.DepthwiseConv1D`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> DepthwiseConv1DLocalReparameterization(3, depth_multiplier=2)(np.ones((2, 6, 4))).shape == (2, 4, 8)
    True
    """


class DepthwiseConv2DReparameterization(NamedVariational, wraps=layers.DepthwiseConv2D, estimator="reparameterization"):
    """`keras.layers.DepthwiseConv2D` with one sampled kernel per call.

    Shapes are those of `keras.layers.DepthwiseConv2D`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> DepthwiseConv2DReparameterization(3, depth_multiplier=2)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 8)
    True
    """


class DepthwiseConv2DFlipout(NamedVariational, wraps=layers.DepthwiseConv2D, estimator="flipout"):
    """`keras.layers.DepthwiseConv2D` with one kernel perturbation per call, and random signs for each example.

    Shapes are those of `keras.layers.DepthwiseConv2D`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> DepthwiseConv2DFlipout(3, depth_multiplier=2)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 8)
    True
    """


class DepthwiseConv2DLocalReparameterization(
    NamedVariational, wraps=layers.DepthwiseConv2D, estimator="local_reparameterization"
):
    """`keras.layers.DepthwiseConv2D` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.DepthwiseConv2D`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> DepthwiseConv2DLocalReparameterization(3, depth_multiplier=2)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 8)
    True
    """


class SeparableConv1DReparameterization(NamedVariational, wraps=layers.SeparableConv1D, estimator="reparameterization"):
    """`keras.layers.SeparableConv1D` with its depthwise and pointwise kernel sampled once per call.

    Shapes are those of `keras.layers.SeparableConv1D`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> SeparableConv1DReparameterization(5, 3)(np.ones((2, 6, 4))).shape == (2, 4, 5)
    True
    """


class SeparableConv1DFlipout(NamedVariational, wraps=layers.SeparableConv1D, estimator="flipout"):
    """`keras.layers.SeparableConv1D` with its two parts perturbed in turn, decorrelated across examples by signs.

    Shapes are those of `keras.layers.SeparableConv1D`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> SeparableConv1DFlipout(5, 3)(np.ones((2, 6, 4))).shape == (2, 4, 5)
    True
    """


class SeparableConv1DLocalReparameterization(
    NamedVariational, wraps=layers.SeparableConv1D, estimator="local_reparameterization"
):
    """`keras.layers.SeparableConv1D` with noise on each output of its two parts in training, whole kernels outside it.

    Shapes are those of `keras.layers.SeparableConv1D`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> SeparableConv1DLocalReparameterization(5, 3)(np.ones((2, 6, 4))).shape == (2, 4, 5)
    True
    """


class SeparableConv2DReparameterization(NamedVariational, wraps=layers.SeparableConv2D, estimator="reparameterization"):
    """`keras.layers.SeparableConv2D` with its depthwise and pointwise kernel sampled once per call.

    Shapes are those of `keras.layers.SeparableConv2D`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> SeparableConv2DReparameterization(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 5)
    True
    """


class SeparableConv2DFlipout(NamedVariational, wraps=layers.SeparableConv2D, estimator="flipout"):
    """`keras.layers.SeparableConv2D` with its two parts perturbed in turn, decorrelated across examples by signs.

    Shapes are those of `keras.layers.SeparableConv2D`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> SeparableConv2DFlipout(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 5)
    True
    """


class SeparableConv2DLocalReparameterization(
    NamedVariational, wraps=layers.SeparableConv2D, estimator="local_reparameterization"
):
    """`keras.layers.SeparableConv2D` with noise on each output of its two parts in training, whole kernels outside it.

    Shapes are those of `keras.layers.SeparableConv2D`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> SeparableConv2DLocalReparameterization(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 5)
    True
    """
