"""Dense and EinsumDense layers with a posterior over their kernel."""

from __future__ import annotations

from keras import layers

from bdl.layers.named import NamedRank1, NamedVariational


class DenseReparameterization(NamedVariational, wraps=layers.Dense, estimator="reparameterization"):
    """`keras.layers.Dense` with one sampled kernel per call.

    Input shape `(batch, ..., input_dim)`, output shape `(batch, ..., units)`.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> DenseReparameterization(3)(np.ones((2, 4))).shape == (2, 3)
    True
    """


class DenseFlipout(NamedVariational, wraps=layers.Dense, estimator="flipout"):
    """`keras.layers.Dense` with one kernel perturbation per call, decorrelated across examples by random signs.

    Input shape `(batch, ..., input_dim)`, output shape `(batch, ..., units)`.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> DenseFlipout(3)(np.ones((2, 4))).shape == (2, 3)
    True
    """


class DenseLocalReparameterization(NamedVariational, wraps=layers.Dense, estimator="local_reparameterization"):
    """`keras.layers.Dense` with noise on each output instead of the kernel: the least gradient noise of the three.

    Exact on inputs of shape `(batch, input_dim)`. With further axes the noise is drawn anew at every position, so that
    only the marginals match: it trains like that, and draws whole kernels outside training.

    Input shape `(batch, ..., input_dim)`, output shape `(batch, ..., units)`.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> DenseLocalReparameterization(3)(np.ones((2, 4))).shape == (2, 3)
    True
    """


class DenseRank1(NamedRank1, wraps=layers.Dense, estimator="rank1"):
    """`keras.layers.Dense` with random factors on its inputs and outputs, drawn for each example.

    Input shape `(batch, ..., input_dim)`, output shape
    `(batch, ..., units)`.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors".

    Example:
    >>> DenseRank1(3)(np.ones((2, 4))).shape == (2, 3)
    True
    """


class EinsumDenseReparameterization(NamedVariational, wraps=layers.EinsumDense, estimator="reparameterization"):
    """`keras.layers.EinsumDense` with one sampled kernel per call.

    Shapes follow the equation.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.2.

    Example:
    >>> EinsumDenseReparameterization("abc,cd->abd", output_shape=(None, 5))(np.ones((2, 3, 4))).shape == (2, 3, 5)
    True
    """


class EinsumDenseFlipout(NamedVariational, wraps=layers.EinsumDense, estimator="flipout"):
    """`keras.layers.EinsumDense` with one kernel perturbation per call, decorrelated across examples by random signs.

    Shapes follow the equation.

    Source: Wen et al. 2018, "Flipout", eq. 4.

    Example:
    >>> EinsumDenseFlipout("abc,cd->abd", output_shape=(None, 5))(np.ones((2, 3, 4))).shape == (2, 3, 5)
    True
    """


class EinsumDenseLocalReparameterization(
    NamedVariational, wraps=layers.EinsumDense, estimator="local_reparameterization"
):
    """`keras.layers.EinsumDense` with noise on each output in training and whole kernels outside it.

    Shapes follow the equation.

    Source: Kingma et al. 2015, "Variational dropout and the local reparameterization trick", eq. 6.

    Example:
    >>> layer = EinsumDenseLocalReparameterization("abc,cd->abd", output_shape=(None, 5))
    >>> layer(np.ones((2, 3, 4))).shape == (2, 3, 5)
    True
    """


class EinsumDenseRank1(NamedRank1, wraps=layers.EinsumDense, estimator="rank1"):
    """`keras.layers.EinsumDense` with random factors on its kernel's input and output features, for each example.

    Shapes follow the equation.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors".

    Example:
    >>> EinsumDenseRank1("abc,cd->abd", output_shape=(None, 5))(np.ones((2, 3, 4))).shape == (2, 3, 5)
    True
    """
