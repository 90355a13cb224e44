"""A diagnosis, and its remedy
===========================

A wide Bayesian network is trained with a fixed prior on each weight. Its ELBO rises by far, and the network learns
nothing. ``diagnose`` says why, and its first remedy mends it.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import bdl
from bdl.diagnostics import TrainingHealth, diagnose

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
x, y, validation = x[:1200], y[:1200], (x[1200:], y[1200:])

# %%
# The callback records the training. It would warn by itself; here it only keeps the record.

layer = bdl.layers.DenseReparameterization
hidden = [layer(512, activation="relu", kernel_prior="fan_in_normal", seed=seed) for seed in (1, 2)]
network = keras.Sequential([keras.Input((64,)), *hidden, layer(10, kernel_prior="fan_in_normal", seed=3)])
model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
model.compile("adam", metrics=["accuracy"])
health = TrainingHealth(data=(x, y), validation_data=validation, on_verdict="record")
model.fit(x, y, batch_size=64, epochs=20, verbose=0, callbacks=[health])

# %%
# The verdict, its evidence, and the remedies.

report = diagnose(model, x, y, validation_data=validation, record=health, num_samples=8, probe_size=300)
print(report)

# %%
# The sum of NLL and KL / N falls because the KL falls. The NLL ends at that of a network that ignores its input.

_, ax = plt.subplots(figsize=(7, 4))
report.plot(ax=ax)
plt.show()

# %%
# A remedy returns a new model with one change, compiled and ready to be fitted.

better = report.remedies[0].apply(model)
better.fit(x, y, batch_size=64, epochs=12, verbose=0)
for name, each in {"before": model, "after": better}.items():
    said = each.predict_distribution(validation[0], seed=0).probabilities.argmax(-1)
    print(f"accuracy {name}: {np.mean(said == validation[1]):.3f}")
