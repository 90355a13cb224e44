"""Monte Carlo prediction and the split of its uncertainty, for any Keras model.

For each input the network is evaluated `num_samples` times. Class probabilities are averaged (never logits, and in
log space, so that a log probability is right however small it is):

    total = H[mean p],   aleatoric = mean H[p],   epistemic = total - aleatoric = mutual information   [nats]

and for a real target with components `p(y | x, w_s)` of mean `m_s` and variance `v_s`

    total = var,   aleatoric = mean v_s,   epistemic = var of m_s   (law of total variance).

Sources: Depeweg et al. 2018, "Decomposition of uncertainty in Bayesian deep learning", eq. 2-5; Kendall & Gal 2017.
"""

from bdl.prediction.columns import columns_of
from bdl.prediction.distributions import ClassificationPrediction, RegressionPrediction
from bdl.prediction.predict import predict_distribution, predict_parts
from bdl.prediction.requests import joined
from bdl.prediction.summaries import RegressionSummary
from bdl.prediction.writing import write_predictions

__all__ = [
    "ClassificationPrediction",
    "RegressionPrediction",
    "RegressionSummary",
    "columns_of",
    "joined",
    "predict_distribution",
    "predict_parts",
    "write_predictions",
]
