"""Recipes: prior, posterior, schedule and optimizer that work together, each with its evidence.

A recipe takes a built Keras network that ends in raw outputs (logits) and returns a compiled `VariationalModel` around
the same network; `fit` it. A network that visibly ends in softmax or sigmoid will do: `Categorical()` and `Bernoulli()`
follow it. All end at T = 1. Figures are printed by the scripts of research/, which
docs/explain/defaults.md names; NLL is per example, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from bdl.convert import to_variational
from bdl.convert.selection import Selector
from bdl.keras_internals import input_structure
from bdl.layers import InputFactors
from bdl.likelihoods.heads import Likelihoods
from bdl.model import VariationalModel
from bdl.posteriors import AnyPosterior, MeanFieldNormal, Rank1
from bdl.priors import EmpiricalBayes, FanInNormal, InputNormal, Normal, Prior, TiedMean
from bdl.recommendation import Recommendation, advise
from bdl.schedules import DecayOverFit
from bdl.training.averaging import AveragingAdam

# Wide enough to notice unseen inputs, and no wider: 10 takes a little noise for one (research/defaults.md).
_INPUT_PRIOR = InputNormal(widest=3.0)

# Scales that grow no faster than weights do: at the default speed of 10 they reach their prior in the hundred steps in
# which a network on photographs has learned nothing yet, and then drown what it would learn (research/defaults.md).
_KERNEL_SPEED = 1.0


def small_data(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """Regression on some hundreds or thousands of examples.

    Mean-field posteriors trained by local reparameterization, with a prior of one spread, `N(m, 0.5^2 / fan-in)`,
    around fitted means (variational EM: the means are MAP estimates); Adam at 1e-2 with scales slowed to it; an
    exponential average of the variables over about 200 steps takes their place at the end of `fit`, so that a training
    needs a thousand steps or more; a learned scale of the likelihood is fitted to the average. Real targets fare better
    with `bdl.likelihoods.StudentT(heteroscedastic=True)`, of two outputs, than with `Normal()`; where the mean's error
    counts, with `StudentT()`. For thousands of smooth targets with little noise see `regression`.

    Evidence: UCI, one hidden layer of 50 units, twenty splits, test NLL less that of the MC-dropout grid search on the
    same splits, heteroscedastic: Boston -.14 ± .04, concrete +.01 ± .02, energy -.55 ± .02, power -.02 ± .01, wine
    -.05 ± .02, yacht -1.09 ± .04; with `StudentT()`: -.10 ± .03, +.01 ± .02, -.47 ± .02, -.01 ± .01, +.04 ± .01, -.53
    ± .02. RMSE is not worse than the deterministic twin's with `StudentT()`; with a predicted scale it is, on concrete
    (5.4, twin 5.2) and energy (.56, twin .50).

    Args:
        network: Built Keras model that ends in raw outputs. Its weights are the means at the start, and are trained.
        likelihood: As of `VariationalModel`.
        num_examples: As of `VariationalModel`.
        seed: Integer that makes the layers' noise reproducible, or None.

    Returns:
        A compiled `VariationalModel`.

    Raises:
        ValueError: as `bdl.convert.to_variational` and `VariationalModel` do.

    Source of the averaging: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging".

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    >>> model = small_data(network, bdl.likelihoods.StudentT())
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20), epochs=2, verbose=0)
    """
    model = _mean_field(network, likelihood, num_examples, seed)
    model.compile(_averaging_adam(1e-2, 0.995))
    return model


def regression(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """Regression on thousands of examples or more, above all of smooth targets with little noise.

    Mean-field posteriors trained by local reparameterization, with a prior of one spread, `N(m, 0.5^2 / fan-in)`,
    around fitted means (variational EM: the means are MAP estimates); Adam at a rate that falls from 1e-2 to nothing
    over `fit` (`bdl.schedules.DecayOverFit`), with scales slowed to it. At a constant rate the weights jitter, and the
    jitter limits the error where the data have hardly any noise. Standardise inputs and targets.

    Evidence: 40 epochs of batches of 32, one hidden layer of 50 units (100 of the third), `Normal()`, NLL less that of
    the default layers with Adam at 1e-3, in nats: 11,934 examples of 16 inputs, nearly without noise, -.84 ± .24; 8,192
    of 8 inputs with noise of .22 standard deviations -.039 ± .015; a power plant's 9,568 -.005 ± .002; 45,730 of
    9 inputs, noise of .5, +.019 ± .007 (five seeds each). On small data, on noisy data and with a predicted scale it
    overfits where the default does not (research/defaults.md).

    Args:
        network: Built Keras model that ends in raw outputs. Its weights are the means at the start, and are trained.
        likelihood: As of `VariationalModel`.
        num_examples: As of `VariationalModel`.
        seed: Integer that makes the layers' noise reproducible, or None.

    Returns:
        A compiled `VariationalModel`.

    Raises:
        ValueError: as `bdl.convert.to_variational` and `VariationalModel` do.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    >>> model = regression(network, bdl.likelihoods.Normal())
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20), epochs=2, verbose=0)
    """
    model = _mean_field(network, likelihood, num_examples, seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(1e-2)))
    return model


def instead_of_ensemble(
    network: keras.Model,
    likelihood: Likelihoods,
    num_examples: int | None = None,
    input_prior: Prior | None = _INPUT_PRIOR,
    seed: int | None = None,
) -> VariationalModel:
    """One network where one would train an ensemble: classification, of any width, with unseen inputs to be noticed.

    In front is a factor for each entry of the input (`bdl.layers.InputFactors`), where that is one tensor of real
    numbers and of known shape. Its prior is broad, `N(1, 3^2)`, where an entry is empty in training, and narrow where
    it varies as others do (`bdl.priors.InputNormal`). An embedding has a factor for each token, `N(1, 2^2)`.
    Dense layers have rank-1 factors, `N(1, 0.5^2)`; kernels of convolutions and recurrent layers are Gaussian around
    fitted means, `N(m, 1 / fan-in)`. Weights and means are point estimates (variational EM). Adam at 3e-3; an average
    of the variables over about the last 100 steps, in a short training the last fifth, takes their place at the end
    of `fit`.

    Evidence: ahead of an ensemble of five in accuracy, NLL and Brier score on digits (five splits: .987 against .981,
    .047 against .084, .021 against .031) and TREC (three seeds: .907 against .897, .25 against .30, .129 against .149);
    with LeNet-5 a little behind it on MNIST (three seeds: .9921 and .9930, .0238 and .0217, .0122 and .0111), and
    behind it, but ahead of its twin, on Fashion-MNIST (three seeds: .893 against .897, .311 against .291, .155 against
    .151). AUROC against noise .95 to 1.00 (ensembles .89 to 1.00), turned digits .85 (.32), a
    class left out .92 (digits, ensemble .92; MNIST, two seeds, .88 ± .03, ensemble .92 ± .02). Strong noise, blur and
    low contrast raise its NLL on MNIST more than its twin's, low contrast and turned images on Fashion-MNIST, too.

    Args:
        network: Built Keras model that ends in raw outputs. Its weights are where training starts, and are trained.
        likelihood: As of `VariationalModel`.
        num_examples: As of `VariationalModel`.
        input_prior: Prior of the input factors. The wider, the more is noticed that the data never used, and the less
            it takes to make the network unsure: `InputNormal(widest=10)` where detection is all,
            `InputNormal(widest=1)` or None (no input factors) where inputs may be noisy, blurred or pale and are to be
            classified all the same.
        seed: Integer that makes the layers' noise reproducible, or None.

    Returns:
        A compiled `VariationalModel`.

    Raises:
        ValueError: as `bdl.convert.to_variational`, `bdl.layers.InputFactors` and `VariationalModel` do.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors".

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> model = instead_of_ensemble(network, bdl.likelihoods.Categorical())
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20, int), epochs=2, verbose=0)
    """
    converted = to_variational(network, prior=_around_means(1.0), posterior=_factors_or_weights, seed=seed)
    behind_factors = _with_input_factors(network, converted, input_prior, seed)
    model = VariationalModel(behind_factors, likelihood, num_examples)
    model.compile(_averaging_adam(3e-3, 0.99))
    return model


def fully_gaussian(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """Every kernel Gaussian, none of it fitted by maximum likelihood: full Bayes as far as mean-field goes.

    Row x column empirical Bayes, local reparameterization, T rising to 1 over 85 % of the training, Adam at 3e-3.

    Evidence: on digits (five seeds; 32, 128, 512 and 1,024 units) relu networks reach an accuracy of .961, .960, .961
    and .957, and their ELBO does not fall with the width (-.896, -.876, -.897, -.881). That is 1 to 2.4 points and 0.1
    nats behind the deterministic twin, with a better AUROC against noise (.98, twin .81 to .87). With tanh they reach
    .961, .956, .954 and .950, and the ELBO falls (-.92, -.97, -1.16, -1.36).

    Args:
        network: Built Keras model that ends in raw outputs. Its weights are the means at the start, and are trained.
        likelihood: As of `VariationalModel`.
        num_examples: As of `VariationalModel`.
        seed: Integer that makes the layers' noise reproducible, or None.

    Returns:
        A compiled `VariationalModel`.

    Raises:
        ValueError: as `bdl.convert.to_variational` and `VariationalModel` do.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> model = fully_gaussian(network, bdl.likelihoods.Categorical())
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20, int), epochs=2, verbose=0)
    """
    converted = to_variational(network, "all", "local_reparameterization", EmpiricalBayes("row_column"), seed=seed)
    model = VariationalModel(converted, likelihood, num_examples)
    model.compile(keras.optimizers.Adam(3e-3))
    return model


def last_layer(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None = None, seed: int | None = None
) -> VariationalModel:
    """A Gaussian posterior on the last layer only; everything below is a point estimate.

    Row x column empirical Bayes, local reparameterization, T rising to 1 over 85 % of the training, Adam at 1e-3.

    Evidence: on digits (five seeds; 32, 128, 512 and 1,024 units) relu networks reach accuracies of .972 to .986, at or
    above the twin but within the error at 32 units, and an NLL below its own but at 32 units (+.007); with tanh it is
    above at 32 units (+.014), equal at 128, and .04 and .06 below at 512 and 1,024. Detection is hardly better than the
    twin's.

    Args:
        network: Built Keras model that ends in raw outputs, with one output. Its weights are where training starts.
        likelihood: As of `VariationalModel`.
        num_examples: As of `VariationalModel`.
        seed: Integer that makes the layer's noise reproducible, or None.

    Returns:
        A compiled `VariationalModel`.

    Raises:
        ValueError: as `bdl.convert.to_variational` and `VariationalModel` do.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> model = last_layer(network, bdl.likelihoods.Categorical())
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20, int), epochs=2, verbose=0)
    """
    converted = to_variational(network, "last", "local_reparameterization", EmpiricalBayes("row_column"), seed=seed)
    model = VariationalModel(converted, likelihood, num_examples)
    model.compile("adam")
    return model


def fine_tuning(
    network: keras.Model,
    likelihood: Likelihoods,
    num_examples: int | None = None,
    layers: Selector = "all",
    seed: int | None = None,
) -> VariationalModel:
    """A trained network becomes Bayesian in a few epochs.

    Priors `N(trained weight, 1 / fan-in)` (MOPED) and scales that start at a tenth of each weight; T = 1 throughout,
    Adam at 1e-3. The data that trained the network are used twice: an empirical-Bayes method.

    Evidence: two epochs on a convolutional network of digits (five seeds, benchmarks/conversion.py) take its accuracy
    from .9874 to .9893, its NLL from .0488 to .0392 and its ECE from .0099 to .0072.

    Args:
        network: Built and trained Keras model that ends in raw outputs.
        likelihood: As of `VariationalModel`.
        num_examples: As of `VariationalModel`.
        layers: Which layers get a posterior, as of `bdl.convert.to_variational`.
        seed: Integer that makes the layers' noise reproducible, or None.

    Returns:
        A compiled `VariationalModel`.

    Raises:
        ValueError: as `bdl.convert.to_variational` and `VariationalModel` do.

    Source: Krishnan et al. 2020, "Specifying weight priors in Bayesian deep neural networks with empirical Bayes".

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> model = fine_tuning(network, bdl.likelihoods.Categorical(), layers="last")
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20, int), epochs=2, verbose=0)
    """
    converted = to_variational(network, layers, prior="moped", seed=seed)
    model = VariationalModel(converted, likelihood, num_examples, kl_weight=1.0)
    model.compile("adam")
    return model


def _around_means(spread: float) -> TiedMean:
    """`N(m, spread^2 / fan-in)` around means that are fitted under a weak prior, `N(0, 3^2)`."""
    return TiedMean(FanInNormal(spread), mean_prior=Normal(0.0, 3.0))


def _mean_field(
    network: keras.Model, likelihood: Likelihoods, num_examples: int | None, seed: int | None
) -> VariationalModel:
    """Mean-field posteriors around fitted means, whose scales are slow enough for a rate of 1e-2."""
    posterior = MeanFieldNormal(speed=3.0)
    converted = to_variational(network, "all", "local_reparameterization", _around_means(0.5), posterior, seed=seed)
    return VariationalModel(converted, likelihood, num_examples)


def _averaging_adam(rate: float, momentum: float) -> keras.optimizers.Optimizer:
    """Adam at a rate whose noise would show in the last iterate; `fit` ends with an average over the last ones.

    Averaging: Polyak & Juditsky 1992.
    """
    return AveragingAdam(rate, ema_momentum=momentum)


def _factors_or_weights(layer: keras.Layer) -> AnyPosterior:
    """What costs less to draw: a dense layer has fewer units than weights, a convolution fewer weights than outputs.

    Of an embedding a factor for each token, broad like those of `InputFactors`, which are the same to an image.
    """
    if isinstance(layer, keras.layers.Embedding):
        return Rank1(Normal(1.0, 2.0), Normal(1.0, 0.5))
    if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
        return Rank1(Normal(1.0, 0.5), Normal(1.0, 0.5))
    return MeanFieldNormal(speed=_KERNEL_SPEED)


def _with_input_factors(
    network: keras.Model, converted: keras.Model, prior: Prior | None, seed: int | None
) -> keras.Model:
    """The converted network behind input factors, where its input is one tensor of real numbers and of known shape."""
    if prior is None:
        return converted
    inputs = input_structure(network)
    inputs = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs
    if not isinstance(inputs, keras.KerasTensor) or None in inputs.shape[1:]:
        return converted
    if "float" not in keras.backend.standardize_dtype(inputs.dtype):
        return converted
    entry = keras.Input(inputs.shape[1:], dtype=inputs.dtype)
    # No seed that to_variational gives: layers of one seed draw the same noise.
    own = None if seed is None else seed * 10_007 + 10_006
    return keras.Model(entry, converted(InputFactors(prior, seed=own)(entry)))


def recommend(
    network: keras.Model,
    x: Any,
    y: Any = None,
    task: str | None = None,
    num_examples: int | None = None,
    is_trained: bool | None = None,
) -> Recommendation:
    """Names one recipe for a network and its data, with the reason; nothing is trained or probed.

    The rules: a trained network is fine-tuned; of a network with more than ten million weights the last layer gets a
    posterior; classification takes `instead_of_ensemble`; a regression takes `fully_gaussian` below 200 examples,
    `regression` from 8,000 on unless the network predicts the scale, too, and `small_data` otherwise, as do counts.
    `bdl.sklearn` follows the same rules. They rest on the measurements of docs/explain/defaults.md and
    docs/explain/sklearn.md, which the record quotes.

    Text, booleans and one-hot rows are classes, numbers with a fraction are targets of a regression. Whole numbers are
    ambiguous, and the network decides: below its number of outputs they are classes; behind one output 0 and 1 are
    classes, other integers counts if none is negative, and whole numbers of a real type targets.

    Args:
        network: Plain Keras model that ends in raw outputs.
        x: Training inputs: arrays, a DataFrame, or a data set of inputs and labels. Only its size is looked at.
        y: Training labels, an array, a Series, or a list or dict of them for several outputs. None takes those of the
            first batch of a data set.
        task: `"classification"`, `"regression"` or `"counts"` says what the labels are; None reads it off them.
        num_examples: Number of training examples, where `x` does not tell.
        is_trained: Whether the network's weights are trained. None: whether its optimizer has taken a step, which
            weights that were loaded do not show.

    Returns:
        A `bdl.recommendation.Recommendation`: recipe, likelihood, reason, cost, and when to choose another.

    Raises:
        ValueError: if labels or the number of examples cannot be told, or the labels do not fit the network.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> found = recommend(network, np.ones((90, 4)), np.arange(90) % 3)
    >>> print(found.code)
    bdl.recipes.instead_of_ensemble(network, bdl.likelihoods.Categorical())
    >>> model = found.recipe(network, found.likelihood)
    """
    return advise(BY_NAME, network, x, y, task, num_examples, is_trained)


_ALL = (small_data, regression, instead_of_ensemble, fully_gaussian, last_layer, fine_tuning)
BY_NAME: dict[str, Callable[..., VariationalModel]] = {recipe.__name__: recipe for recipe in _ALL}
"""Every recipe by its name."""
