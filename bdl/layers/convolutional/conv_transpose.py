"""Transposed convolution layers with a posterior over their kernel."""

from __future__ import annotations

from keras import layers

from bdl.layers.named import NamedVariational


class Conv1DTransposeReparameterization(NamedVariational, wraps=layers.Conv1DTranspose, estimator="reparameterization"):
    """`keras.layers.Conv1DTranspose` with one sampled kernel per call.

    Shapes are those of `keras.layers.Conv1DTranspose`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> Conv1DTransposeReparameterization(5, 3)(np.ones((2, 6, 4))).shape == (2, 8, 5)
    True
    """


class Conv1DTransposeFlipout(NamedVariational, wraps=layers.Conv1DTranspose, estimator="flipout"):
    """`keras.layers.Conv1DTranspose` with one kernel perturbation per call, and random signs for each example.

    Shapes are those of `keras.layers.Conv1DTranspose`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> Conv1DTransposeFlipout(5, 3)(np.ones((2, 6, 4))).shape == (2, 8, 5)
    True
    """


class Conv1DTransposeLocalReparameterization(
    NamedVariational, wraps=layers.Conv1DTranspose, estimator="local_reparameterization"
):
    """`keras.layers.Conv1DTranspose` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.Conv1DTranspose`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> Conv1DTransposeLocalReparameterization(5, 3)(np.ones((2, 6, 4))).shape == (2, 8, 5)
    True
    """


class Conv2DTransposeReparameterization(NamedVariational, wraps=layers.Conv2DTranspose, estimator="reparameterization"):
    """`keras.layers.Conv2DTranspose` with one sampled kernel per call.

    Shapes are those of `keras.layers.Conv2DTranspose`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> Conv2DTransposeReparameterization(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 8, 8, 5)
    True
    """


class Conv2DTransposeFlipout(NamedVariational, wraps=layers.Conv2DTranspose, estimator="flipout"):
    """`keras.layers.Conv2DTranspose` with one kernel perturbation per call, and random signs for each example.

    Shapes are those of `keras.layers.Conv2DTranspose`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> Conv2DTransposeFlipout(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 8, 8, 5)
    True
    """


class Conv2DTransposeLocalReparameterization(
    NamedVariational, wraps=layers.Conv2DTranspose, estimator="local_reparameterization"
):
    """`keras.layers.Conv2DTranspose` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.Conv2DTranspose`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> Conv2DTransposeLocalReparameterization(5, 3)(np.ones((2, 6, 6, 4))).shape == (2, 8, 8, 5)
    True
    """


class Conv3DTransposeReparameterization(NamedVariational, wraps=layers.Conv3DTranspose, estimator="reparameterization"):
    """`keras.layers.Conv3DTranspose` with one sampled kernel per call.

    Shapes are those of `keras.layers.Conv3DTranspose`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> Conv3DTransposeReparameterization(5, 3)(np.ones((2, 6, 6, 6, 4))).shape == (2, 8, 8, 8, 5)
    True
    """


class Conv3DTransposeFlipout(NamedVariational, wraps=layers.Conv3DTranspose, estimator="flipout"):
    """`keras.layers.Conv3DTranspose` with one kernel perturbation per call, and random signs for each example.

    Shapes are those of `keras.layers.Conv3DTranspose`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> Conv3DTransposeFlipout(5, 3)(np.ones((2, 6, 6, 6, 4))).shape == (2, 8, 8, 8, 5)
    True
    """


class Conv3DTransposeLocalReparameterization(
    NamedVariational, wraps=layers.Conv3DTranspose, estimator="local_reparameterization"
):
    """`keras.layers.Conv3DTranspose` with noise on each output in training, whole kernels outside it.

    Shapes are those of `keras.layers.Conv3DTranspose`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> Conv3DTransposeLocalReparameterization(5, 3)(np.ones((2, 6, 6, 6, 4))).shape == (2, 8, 8, 8, 5)
    True
    """
