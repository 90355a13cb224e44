"""Which key does attention mean?
==============================

Attention that treats its alignment as a latent variable says how certain it is. Each example has one query, a colour,
and six keys, each with a colour and a number. The label is the number of a key of the asked colour. Where two keys have
that colour, either may be meant: the alignment is uncertain until the label is known.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np

import bdl

COLORS, NUMBERS, KEYS = 5, 10, 6
random = np.random.default_rng(0)


def examples(count):
    colors, numbers = random.integers(COLORS, size=(count, KEYS)), random.integers(NUMBERS, size=(count, KEYS))
    meant = random.integers(KEYS, size=count)
    rows = np.arange(count)
    query = np.eye(COLORS, dtype="float32")[colors[rows, meant]][:, None]
    value = np.concatenate([np.eye(COLORS)[colors], np.eye(NUMBERS)[numbers]], axis=-1).astype("float32")
    return [query, value], numbers[rows, meant][:, None], colors, numbers


# %%
# `estimator="marginal"` sums the likelihood over all keys, exactly. `Mixture` is the likelihood of that sum.

keras.utils.set_random_seed(0)
query, value = keras.Input((1, COLORS)), keras.Input((KEYS, COLORS + NUMBERS))
key = keras.layers.Dense(16, use_bias=False)(value)
asked = keras.layers.Dense(16, use_bias=False)(query)
attention = bdl.layers.LatentAttention(estimator="marginal", decoder=keras.layers.Dense(NUMBERS))
likelihood = bdl.likelihoods.Mixture(bdl.likelihoods.Categorical())
model = bdl.VariationalModel(keras.Model([query, value], attention([asked, value, key])), likelihood)
model.compile(keras.optimizers.Adam(1e-2))
inputs, labels, *_ = examples(4000)
model.fit(inputs, labels, batch_size=100, epochs=20, verbose=0)

# %%
# The prior alignment p(z | x) knows the query, and the posterior p(z | x, y) knows the label as well.

inputs, labels, colors, numbers = examples(400)
outputs = model.network.predict(inputs, verbose=0)
prior, posterior = (
    np.asarray(each)[:, 0] for each in (likelihood.alignments(outputs), likelihood.posterior(labels, outputs))
)
same = np.sum(colors == inputs[0][:, 0].argmax(-1)[:, None], axis=1)
entropy = bdl.layers.alignment.entropy(np.log(prior))
for count in (1, 2, 3):
    print(f"{count} keys of the colour: {np.mean(entropy[same == count]):.2f} nats, log {count} = {np.log(count):.2f}")

# %%
# Four examples. A column is a key, with its number; crosses mark the keys of the asked colour.

chosen = np.concatenate([np.flatnonzero(same == count)[:most] for count, most in ((1, 1), (2, 2), (3, 1))])
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for ax, probabilities, title in zip(axes, (prior, posterior), ("p(z | x)", "p(z | x, y)"), strict=True):
    image = ax.imshow(probabilities[chosen], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row, example in enumerate(chosen):
        for column in range(KEYS):
            mark = " x" if colors[example, column] == inputs[0][example, 0].argmax() else ""
            ink = "white" if probabilities[example, column] > 0.6 else "black"
            ax.text(column, row, f"{numbers[example, column]}{mark}", ha="center", va="center", color=ink)
    ax.set(title=title, xticks=range(KEYS), xlabel="key")
axes[0].set(yticks=range(4), yticklabels=[f"label {labels[example, 0]}" for example in chosen])
figure.colorbar(image, ax=axes, label="probability")
plt.show()
