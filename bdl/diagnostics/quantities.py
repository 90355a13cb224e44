"""What a diagnosis reads: numbers of a run, of its layers and of its fit, as plain frozen records.

Everything here can be written to JSON and read back, so that a verdict needs neither the model nor the data, and so
that layers of any library, dropout and local latent variables reach the rules by the same road. A quantity that was
not measured is None; no rule fires on None.

The numbers Q1 to Q23 are those of docs/explain/diagnostics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bdl.diagnostics.gradient_analysis import GradientNoise
from bdl.diagnostics.schema import checked
from bdl.diagnostics.story_health import StoryHealth
from bdl.likelihoods import constants


@dataclass(frozen=True)
class LayerHealth:
    """One layer with a posterior.

    Args:
        name: The layer's path.
        num_weights: Number of scales that could be read; without any, only the KL is known.
        kl: Divergence from the prior, in nats, total over the layer: its own `kl_divergence()`, with what its point
            estimates pay; of a layer of another library without one, that of independent Gaussians.
        counted: How often the loss counts that divergence: 1 is right (Q2).
        counted_error: Its standard error: rounding, and where the KL is estimated from samples, their noise.
        prior_matched: Share of weights, each by itself, within 0.01 nats of where their prior alone would hold them
            (Q9); under a Gaussian prior this is their own KL.
        contraction: Median of `1 - (scale / prior scale)^2` (Q10).
        signal_to_noise: Median of `|mean| / scale` (Q11).
        stuck: Share of scales within 5 % of their start (Q17).
        active_units: Share of its units whose output carries a signal (Q12).
        gradient_ratio: Norm of the gradient of KL / N over that of the NLL (Q16).
        gradient_cosine: Cosine between the two (Q16).
        draws_factors: Whether what is drawn multiplies the entries of its inputs or outputs one by one (`InputFactors`,
            rank-1), so that `signal_to_noise` is that of each entry.
        noise_cost: What its noise costs one draw of the network, the others' noise staying as it is: NLL with it less
            that without it, in nats per example of the training data (Q21). Measured of layers near their prior alone.
    """

    name: str
    num_weights: int = 0
    kl: float | None = None
    counted: float | None = None
    counted_error: float | None = None
    prior_matched: float | None = None
    contraction: float | None = None
    signal_to_noise: float | None = None
    stuck: float | None = None
    active_units: float | None = None
    gradient_ratio: float | None = None
    gradient_cosine: float | None = None
    draws_factors: bool | None = None
    noise_cost: float | None = None


@dataclass(frozen=True)
class Fit:
    """How well a network predicts one data set; NLLs in nats per example.

    Args:
        num_examples: Examples evaluated.
        nll_null: Of a model that ignores the inputs (Q3).
        nll_gibbs: Mean over weight samples of their NLL (Q4).
        nll_bma: Of the mean predictive density (Q4).
        nll_mean: Of the posterior mean (Q4).
        gain: What the data taught, 0 nothing to 1 everything (Q6).
        gain_error: Its standard error, over examples (Q18).
        accuracy: Share of labels predicted right, or 1 - mse / variance of the targets.
        accuracy_error: Its standard error.
        disagreement: Standard deviation over weight samples of the NLL that one of them has, in nats (Q18).
    """

    num_examples: int
    nll_null: float
    nll_gibbs: float
    nll_bma: float
    nll_mean: float | None = None
    gain: float = 0.0
    gain_error: float = 0.0
    accuracy: float | None = None
    accuracy_error: float | None = None
    disagreement: float | None = None


@dataclass(frozen=True)
class Trends:
    """Trends of the curves over the last window of epochs (Q15), in nats per example; the ELBO at T = 1.

    A slope is Theil and Sen's, times the window: the change over it. `p` is the two-sided one of Mann and Kendall.

    Args:
        window: Number of recorded epochs in it.
        elbo_change: Of the ELBO.
        elbo_p: Its significance.
        nll_change: Of the training NLL; of a run of two to four epochs, what the last of them changed it by.
        nll_p: Its significance; None of so few epochs.
        nll_rise: Training NLL, mean of its last epochs, above its best smoothed value.
        nll_rise_errors: The same in standard errors of the epochs' scatter.
        kl_fall: KL / N at the best smoothed training NLL, above that of the last epochs.
        val_nll_change: Of the validation NLL.
        val_nll_p: Its significance.
        val_nll_rise: Validation NLL, mean of its last epochs, above its best smoothed value.
        val_nll_rise_errors: The same in standard errors of the epochs' scatter.
        val_nll_best: That best smoothed value.
        accuracy_drop: Accuracy (of validation data if there are any) below its best smoothed value.
        kappa: Share of the ELBO's gain that fewer nats of KL bought; above 1 when the NLL got worse.
    """

    window: int
    elbo_change: float | None = None
    elbo_p: float | None = None
    nll_change: float | None = None
    nll_p: float | None = None
    nll_rise: float | None = None
    nll_rise_errors: float | None = None
    kl_fall: float | None = None
    val_nll_change: float | None = None
    val_nll_p: float | None = None
    val_nll_rise: float | None = None
    val_nll_rise_errors: float | None = None
    val_nll_best: float | None = None
    accuracy_drop: float | None = None
    kappa: float | None = None


@dataclass(frozen=True)
class LocalLatents:
    """Alignments or codes: latent variables of single examples (Q19).

    Args:
        kl: Mean over examples of their divergence, in nats per example.
        active_units: Share of code units that vary with the input, `Cov_x(E_q z) > 0.01`.
        mutual_information: Between latent variable and input, in nats per example.
        attention_entropy: Mean entropy of an alignment over the log of the number of keys, 0 to 1.
    """

    kl: float | None = None
    active_units: float | None = None
    mutual_information: float | None = None
    attention_entropy: float | None = None


@dataclass(frozen=True)
class Refit:
    """A short training from the same means with one change (Q20).

    Args:
        change: What was changed: `"nothing"`, `"family"`, `"prior"` or `"optimizer"`.
        what: The change in words.
        elbo: ELBO at T = 1 after it, nats per example.
        elbo_error: Its Monte Carlo standard error.
    """

    change: str
    what: str
    elbo: float
    elbo_error: float


@dataclass(frozen=True)
class Quantities:
    """All quantities that the rules of `bdl.diagnostics.verdict` read.

    Args:
        epoch: Epochs trained, from 1; 0 before training.
        planned_epochs: Epochs that were asked for.
        is_over: Whether the training is known to have ended, by itself or by early stopping.
        num_examples: Training examples, N: what `fit` measured, where it did.
        told_examples: What the model's `num_examples` says instead, which its objective divides by; None if the same.
        has_data: Whether data were given to measure on; None if unknown.
        finite: Whether loss and weights are finite.
        temperature: Effective temperature T at the end of the schedule, measured from the compiled loss (Q1).
        declared_temperature: The T that the user asked for, where there is one to declare; else None.
        present_temperature: T that training has come to, which a warm-up raises to the final one: of the model as it
            stands, else of the last recorded epoch.
        kl: Closed-form divergence of all weights, in nats, total; with it the `penalty`.
        penalty: The part of `kl` that point estimates pay for their own prior (MAP), in nats, total.
        unread: Sentences on what could not be read, such as posteriors of other libraries.
        is_rank1: Whether every posterior is one of rank-1 factors.
        has_fitted_means: Whether posterior means are point estimates (`TiedMean`: variational EM), so that `kl` leaves
            out what they say.
        is_of_optimizer: Whether the weights' posterior is the optimizer's (`bdl.optimizers.IVON`) and not the layers'.
        train: Fit to training data.
        validation: Fit to data not trained on.
        twin: Fit of the deterministic twin, on the same data as `validation` (else `train`) (Q14).
        nll_prior: Mean NLL of networks drawn from the prior, nats per example (Q5).
        function_signal: `sd_x(E_q f) / sd(y)` (Q13).
        function_variance: `E_x Var_q f / E_x Var_p f` (Q13).
        pruned_accuracy: Accuracy of the posterior mean when the weights of the lowest signal-to-noise ratio are zero,
            by their share, such as `"75%"` (Q11).
        layers: Each layer with a posterior.
        trends: Of the recorded epochs.
        local: Local latent variables, if there are any.
        refits: Short trainings that tell family, prior and optimizer apart (Q20).
        has_noise: Whether predictions of one input differ between draws; None if unknown.
        dropout_rates: Rates of the dropout layers that stay on.
        num_members: Members of an ensemble; 1 for a single network.
        gradient_noise: Signal and noises of the gradient of a step (Q23).
        story: Of a model of a story, which has no labels: fits, twin and layers do not apply to it.
    """

    epoch: int = 0
    planned_epochs: int | None = None
    is_over: bool | None = None
    num_examples: int | None = None
    told_examples: int | None = None
    has_data: bool | None = None
    finite: bool = True
    temperature: float | None = None
    declared_temperature: float | None = None
    present_temperature: float | None = None
    kl: float | None = None
    penalty: float | None = None
    unread: tuple[str, ...] = ()
    is_rank1: bool | None = None
    has_fitted_means: bool | None = None
    is_of_optimizer: bool | None = None
    train: Fit | None = None
    validation: Fit | None = None
    twin: Fit | None = None
    nll_prior: float | None = None
    function_signal: float | None = None
    function_variance: float | None = None
    pruned_accuracy: dict[str, float] | None = None
    layers: tuple[LayerHealth, ...] = ()
    trends: Trends | None = None
    local: LocalLatents | None = None
    refits: tuple[Refit, ...] = ()
    has_noise: bool | None = None
    dropout_rates: tuple[float, ...] = ()
    num_members: int = 1
    gradient_noise: GradientNoise | None = None
    story: StoryHealth | None = None

    @property
    def rate(self) -> float | None:
        """R = KL / N, nats per example, with the local divergence in it (Q8)."""
        if self.kl is None or not self.num_examples:
            return None
        local = (self.local.kl or 0.0) if self.local else 0.0
        return self.kl / self.num_examples + local

    @property
    def judged(self) -> Fit | None:
        """The fit to judge by: on data not trained on, where there are any."""
        return self.validation or self.train

    @property
    def twin_gap(self) -> float | None:
        """Gain of the twin above the network's; None without a twin (Q14)."""
        if self.twin is None or self.judged is None:
            return None
        return self.twin.gain - self.judged.gain

    @property
    def information_excess(self) -> float | None:
        """`KL/N - (NLL_prior - NLL_Gibbs)`: above 0, the prior itself would have a better ELBO (Q7).

        Point estimates pay the same penalty there, so that it does not count.
        """
        if self.rate is None or not self.num_examples or self.nll_prior is None or self.train is None:
            return None
        divergence = self.rate - (self.penalty or 0.0) / self.num_examples
        return divergence - (self.nll_prior - self.train.nll_gibbs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what is not known."""
        return _without_none(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Quantities:
        """Reads what `to_dict` wrote; fields of newer versions are passed over.

        Raises:
            ValueError: if a value is of another type than the field, which it names.
        """
        return checked(cls, dict(values))


def data_gain(nll_bma: float, nll_null: float, is_classifier: bool, num_events: int = 1) -> float:
    """What the data taught (Q6): 0 for a model that ignores the inputs, 1 for perfect predictions.

    A density depends on the unit of its target, so that for regression the gain is `1 - exp(2 (NLL - NLL_null))` per
    event: of a Gaussian with fitted scale, the share of the variance that is explained.

    Example:
    >>> data_gain(0.5, 2.0, is_classifier=True)
    0.75
    """
    if is_classifier:
        return float((nll_null - nll_bma) / max(nll_null, 1e-12))
    return float(1.0 - math.exp(min(2.0 * (nll_bma - nll_null) / num_events, 50.0)))


def fit_figures(
    nll: ArrayLike,
    y: ArrayLike,
    mean: ArrayLike,
    is_classifier: bool,
    nll_mean: float | None = None,
    nll_null: ArrayLike | None = None,
) -> Fit:
    """All figures of a fit from the NLLs of weight samples.

    Args:
        nll: `(num_samples, n)`, in nats, summed over the events of an example.
        y: Labels or targets, `(n, ...)`.
        mean: Predictive mean, `(n, ...)`; of a classifier its class probabilities `(n, ..., classes)`, or of label 1.
        is_classifier: Whether `y` are labels.
        nll_mean: NLL of the posterior mean, nats per example.
        nll_null: NLL of a model that ignores the inputs: of each example, `(n,)`, so that the error of the gain is
            that of a difference, or one number. None takes class frequencies, or a Gaussian.

    Example:
    >>> figures = fit_figures(np.full((4, 2), 0.1), [0, 1], np.eye(2), is_classifier=True)
    >>> figures.accuracy, round(figures.gain, 3)
    (1.0, 0.856)
    """
    nll, y, mean = np.asarray(nll, "float64"), np.asarray(y), np.asarray(mean, "float64")
    num_samples, n = nll.shape
    with np.errstate(invalid="ignore"):  # of a network that diverged everything is NaN, which is its verdict
        bma = -(np.logaddexp.reduce(-nll, axis=0) - math.log(num_samples))
    if nll_null is None:
        nll_null = constants.frequencies(y) if is_classifier else constants.gaussian(y)
    null = np.broadcast_to(np.asarray(nll_null, "float64"), (n,))
    nll_null = float(null.mean())
    events = y.reshape(n, -1).shape[1]
    nll_bma = float(bma.mean())
    gain = data_gain(nll_bma, nll_null, is_classifier, events)
    slope = 1.0 / max(nll_null, 1e-12) if is_classifier else 2.0 / events * (1.0 - gain)
    correct = _correctness(y, mean, is_classifier)
    error = math.sqrt(max(n - 1, 1))
    return Fit(
        num_examples=n,
        nll_null=nll_null,
        nll_gibbs=float(nll.mean()),
        nll_bma=nll_bma,
        nll_mean=nll_mean,
        gain=gain,
        gain_error=float(slope * (bma - null).std() / error),
        accuracy=float(correct.mean()),
        accuracy_error=float(correct.std() / error),
        disagreement=float(nll.mean(axis=1).std(ddof=1)) if num_samples > 1 else 0.0,
    )


def _correctness(y: np.ndarray, mean: np.ndarray, is_classifier: bool) -> np.ndarray:
    """For each example: share of right labels, or the share of variance that its error leaves explained."""
    n = len(y)
    if not is_classifier:
        target = y.reshape(n, -1).astype("float64")
        variance = np.maximum(target.var(axis=0), 1e-12)
        return (1.0 - (target - mean.reshape(n, -1)) ** 2 / variance).mean(axis=1)
    labels = mean.argmax(axis=-1) if mean.size != y.size else (mean > 0.5).astype(int)
    return (labels.reshape(n, -1) == y.reshape(n, -1)).mean(axis=1)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, (list, tuple)) else value
