"""Monte Carlo prediction and the split of its uncertainty, for any Keras model.

For each input the network is evaluated `num_samples` times. Class probabilities are averaged (never logits, and in
log space, so that a log probability is right however small it is):

    total = H[mean p],   aleatoric = mean H[p],   epistemic = total - aleatoric = mutual information   [nats]

and for a real target with components `p(y | x, w_s)` of mean `m_s` and variance `v_s`

    total = var,   aleatoric = mean v_s,   epistemic = var of m_s   (law of total variance).

Sources: Depeweg et al. 2018, "Decomposition of uncertainty in Bayesian deep learning", eq. 2-5; Kendall & Gal 2017.
"""

from bdl.prediction.distributions import ClassificationPrediction, Prediction, RegressionPrediction
from bdl.prediction.predict import entropy, mean_of_prediction, predict_distribution, predict_with

__all__ = [
    "ClassificationPrediction",
    "Prediction",
    "RegressionPrediction",
    "entropy",
    "mean_of_prediction",
    "predict_distribution",
    "predict_with",
]
