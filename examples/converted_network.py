"""Uncertainty for a trained network
=================================

A network that is trained already becomes Bayesian in two ways: its dropout stays on at prediction, which costs no
training, or each weight gets a posterior around its value, which costs two epochs.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import bdl

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
x_train, y_train, x_test, y_test = x[:1000], y[:1000], x[1000:], y[1000:]

# %%
# Any Keras network will do. This one is trained as usual.

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(128, "relu"),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(10),
    ]
)
network.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
network.fit(x_train, y_train, batch_size=50, epochs=20, verbose=0)
likelihood = bdl.likelihoods.Categorical()

# %%
# Without training: dropout stays on.

dropout = bdl.convert.to_mc_dropout(network, seed=0)

# %%
# With two epochs: posteriors and priors around the trained weights. The conversion shares its weights with the model
# that it is given, so it gets a copy.

copy = keras.models.clone_model(network)
copy.set_weights(network.get_weights())
model = bdl.VariationalModel(bdl.convert.to_variational(copy, prior="moped", seed=0), likelihood, kl_weight=1.0)
model.compile("adam")
model.fit(x_train, y_train, epochs=2, verbose=0)

# %%
# All three beside each other: the uncertainty of images that are classified right, and of errors.

predictions = {
    "as it is": bdl.predict_distribution(network, x_test, likelihood, num_samples=1),
    "MC dropout": bdl.predict_distribution(dropout, x_test, likelihood, num_samples=100, seed=0),
    "posteriors": model.predict_distribution(x_test, num_samples=100, seed=0),
}
print(bdl.evaluate(y_test, predictions, num_resamples=0))

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
for ax, (name, prediction) in zip(axes, predictions.items(), strict=True):
    wrong = prediction.probabilities.argmax(-1) != y_test
    order = [prediction.total_uncertainty[~wrong], prediction.total_uncertainty[wrong]]
    ax.boxplot(order, tick_labels=[f"right ({np.sum(~wrong)})", f"wrong ({np.sum(wrong)})"], widths=0.5)
    ax.set(title=name)
axes[0].set(ylabel="total uncertainty [nats]")
plt.show()
