"""Convolution layers with a posterior over their kernel."""

from __future__ import annotations

from keras import layers

from bdl.layers.named import NamedRank1, NamedVariational


class Conv1DReparameterization(NamedVariational, wraps=layers.Conv1D, estimator="reparameterization"):
    """`keras.layers.Conv1D` with one sampled kernel per call.

    Shapes are those of `keras.layers.Conv1D`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> Conv1DReparameterization(5, 3)(np.ones((2, 6, 4))).shape == (2, 4, 5)
    True
    """


class Conv1DFlipout(NamedVariational, wraps=layers.Conv1D, estimator="flipout"):
    """`keras.layers.Conv1D` with one kernel perturbation per call, decorrelated across examples by random signs.

    Shapes are those of `keras.layers.Conv1D`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> Conv1DFlipout(5, 3)(np.ones((2, 6, 4))).shape == (2, 4, 5)
    True
    """


class Conv1DLocalReparameterization(NamedVariational, wraps=layers.Conv1D, estimator="local_reparameterization"):
    """`keras.layers.Conv1D` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.Conv1D`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> Conv1DLocalReparameterization(5, 3)(np.ones((2, 6, 4))).shape == (2, 4, 5)
    True
    """


class Conv1DRank1(NamedRank1, wraps=layers.Conv1D, estimator="rank1"):
    """`keras.layers.Conv1D` with random factors on its channels and filters, drawn for each example.

    Shapes are those of `keras.layers.Conv1D`.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors".

    Example:
    >>> Conv1DRank1(5, 3)(np.ones((2, 6, 4))).shape == (2, 4, 5)
    True
    """


class Conv2DReparameterization(NamedVariational, wraps=layers.Conv2D, estimator="reparameterization"):
    """`keras.layers.Conv2D` with one sampled kernel per call.

    Shapes are those of `keras.layers.Conv2D`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> Conv2DReparameterization(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 5)
    True
    """


class Conv2DFlipout(NamedVariational, wraps=layers.Conv2D, estimator="flipout"):
    """`keras.layers.Conv2D` with one kernel perturbation per call, decorrelated across examples by random signs.

    Shapes are those of `keras.layers.Conv2D`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> Conv2DFlipout(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 5)
    True
    """


class Conv2DLocalReparameterization(NamedVariational, wraps=layers.Conv2D, estimator="local_reparameterization"):
    """`keras.layers.Conv2D` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.Conv2D`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> Conv2DLocalReparameterization(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 5)
    True
    """


class Conv2DRank1(NamedRank1, wraps=layers.Conv2D, estimator="rank1"):
    """`keras.layers.Conv2D` with random factors on its channels and filters, drawn for each example.

    Shapes are those of `keras.layers.Conv2D`.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors".

    Example:
    >>> Conv2DRank1(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 4, 4, 5)
    True
    """


class Conv3DReparameterization(NamedVariational, wraps=layers.Conv3D, estimator="reparameterization"):
    """`keras.layers.Conv3D` with one sampled kernel per call.

    Shapes are those of `keras.layers.Conv3D`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> Conv3DReparameterization(5, 3)(np.ones((2, 6, 6, 6, 4))).shape == (2, 4, 4, 4, 5)
    True
    """


class Conv3DFlipout(NamedVariational, wraps=layers.Conv3D, estimator="flipout"):
    """`keras.layers.Conv3D` with one kernel perturbation per call, decorrelated across examples by random signs.

    Shapes are those of `keras.layers.Conv3D`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> Conv3DFlipout(5, 3)(np.ones((2, 6, 6, 6, 4))).shape == (2, 4, 4, 4, 5)
    True
    """


class Conv3DLocalReparameterization(NamedVariational, wraps=layers.Conv3D, estimator="local_reparameterization"):
    """`keras.layers.Conv3D` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.Conv3D`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> Conv3DLocalReparameterization(5, 3)(np.ones((2, 6, 6, 6, 4))).shape == (2, 4, 4, 4, 5)
    True
    """


class Conv3DRank1(NamedRank1, wraps=layers.Conv3D, estimator="rank1"):
    """`keras.layers.Conv3D` with random factors on its channels and filters, drawn for each example.

    Shapes are those of `keras.layers.Conv3D`.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors".

    Example:
    >>> Conv3DRank1(5, 3)(np.ones((2, 6, 6, 6, 4))).shape == (2, 4, 4, 4, 5)
    True
    """
