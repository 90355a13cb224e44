"""Every threshold of the verdicts, in one table, with what it was set by.

Values marked "zoo" were set on the calibration half of `benchmarks/zoo.py` and scored on the other;
docs/explain/diagnostics.md has both. The rest follow from definitions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """The limits that the rules of the verdicts use.

    Args:
        temperature_low: T below it is mis-scaled. From the definition: three halves either way.
        temperature_high: T above it is mis-scaled.
        declared_cold: A declared T below it is near-deterministic and not a mistake.
        count_tolerance: Relative error of a layer's share of the KL that is still one count: the loss is measured to
            better than this in float32.
        count_errors: Standard errors that a share of a sampled KL may be off: one in 16,000 layers by chance.
        significance: Of a trend, two-sided.
        errors: Standard errors that a difference needs (Q18).
        material_nll_fall: NLL that the last third of training still took off, as a share of NLL_null, above which a run
            is not done; and rise of the validation NLL that is overfitting where the twin is ahead. Zoo.
        dominated_rate: R above it times NLL_null, with nothing learned, is a start that the KL dominates. Zoo.
        kappa: Share of the ELBO's gain bought by the KL. Proposed in the design, kept by the zoo.
        twin_gap: Gain below the twin's from which a network underfits. Zoo: default mean-field layers on small data
            stay up to 0.15 below their twins and are healthy.
        accuracy_gap: The same for accuracy (explained variance).
        accuracy_alone: Accuracy below the twin's that is evidence by itself, whatever the gain, where nothing more
            specific was found: twice `accuracy_gap`.
        accuracy_drop: Accuracy below its best from which a network forgets; a warm-up costs a tenth. Zoo.
        near_prior: Contraction below which the data have hardly narrowed a layer: its median scale is more than half
            of its prior's. From the definition.
        noise_cost: NLL that a layer's noise costs, as a share of NLL_null, that counts as large. Zoo.
        drowned_gap: Gain below the twin's that a layer's noise, forgetting or overfitting must have cost; so little is
            enough because the cause is known. Zoo.
        twin_reached: Gap to the twin below which a falling NLL is no news. Zoo.
        collapsed_gain: G below it has learned nothing. Where it lies within two standard errors of G, and the two
            sides have different verdicts, neither is given.
        collapsed_rate: R below it, as a share of NLL_null: the posterior says next to nothing. Zoo.
        collapsed_signal: rho below it ignores the inputs.
        active_units: Share of a layer's units below which it is over-pruned.
        pruned_gap: Gap to the twin that over-pruning must have cost. Zoo.
        saturated_variance: v above it: the functions vary as if there were no data.
        saturated_disagreement: Gibbs minus BMA, as a share of NLL_null, that counts as large. Zoo.
        stuck: Share of a layer's scales within 5 % of their start.
        excess_rate: Q7's excess, as a share of NLL_null, that cannot be Monte Carlo error. Zoo.
        overfit_rise: Rise of the validation NLL from its best, as a share of NLL_null. Zoo.
        refit_gain: ELBO that a refit must gain over the control, as a share of NLL_null, to name a cause (Q20).
        local_share: Of the training, before which alignments are uniform because they are new.
        local_rate: Local KL per example below it, in nats, is a collapsed code.
        uniform_attention: Attention entropy over log(keys) above it ignores the keys.
        iterates: R-hat of the iterates above which they are on their way. Dhaka et al. 2020, section 4.
        moved: Change between two windows of iterates, in standard deviations of the guide, that counts: less of it no
            user of the posterior would notice.
    """

    temperature_low: float = 0.67
    temperature_high: float = 1.5
    declared_cold: float = 0.1
    count_tolerance: float = 0.01
    count_errors: float = 4.0
    significance: float = 0.05
    errors: float = 2.0
    material_nll_fall: float = 0.03
    dominated_rate: float = 0.5
    kappa: float = 0.8
    twin_gap: float = 0.2
    accuracy_gap: float = 0.04
    accuracy_alone: float = 0.08
    accuracy_drop: float = 0.2
    near_prior: float = 0.75
    noise_cost: float = 0.1
    drowned_gap: float = 0.05
    twin_reached: float = 0.05
    collapsed_gain: float = 0.05
    collapsed_rate: float = 0.1
    collapsed_signal: float = 0.1
    active_units: float = 0.5
    pruned_gap: float = 0.2
    saturated_variance: float = 0.8
    saturated_disagreement: float = 0.75
    stuck: float = 0.5
    excess_rate: float = 0.2
    overfit_rise: float = 0.14
    refit_gain: float = 0.02
    local_share: float = 0.2
    local_rate: float = 0.01
    uniform_attention: float = 0.99
    iterates: float = 1.1
    moved: float = 0.1


THRESHOLDS = Thresholds()
"""The limits that all verdicts use."""
