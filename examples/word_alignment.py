"""Attention as a latent alignment
===============================

Which word does a word translate? Attention as a latent alignment, by five estimators, on pairs with gold links.

::

    python examples/word_alignment.py                                 # a small made language: two minutes
    python examples/word_alignment.py --data DIR --output results.json --figure alignments.png

Every model is p(y_t | y_<t, x): a GRU reads the target words before t, and its state asks the words of the source. Soft
attention gives the decoder their mean; the others take the softmax as the prior p(z | x) of one aligned word z. All of
them share network, vocabulary, batches and stopping rule, so that they differ in the estimator alone.

Perplexity is exp(nll per target word) of pairs held out, summed over z exactly. The alignment error rate, AER = 1 - F1,
is that of the most probable z: once before y_t is seen, by p(z | x), and once after, by p(z | x, y).
"""

# sphinx_gallery_thumbnail_path = "images/word_alignment.png"

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import typer
from alignment_figure import Aligned, draw
from rich.console import Console
from rich.table import Table
from word_pairs import (
    Batches,
    Corpus,
    Encoder,
    Pair,
    Vocabulary,
    alignment_error_rate,
    by_length,
    europarl,
    generated,
)

import bdl

ESTIMATORS = ("soft", "marginal", "enumerate", "reinforce", "gumbel")
INFERRED = ("enumerate", "reinforce", "gumbel")
"""Those trained on a bound, with an inference network q(z | x, y)."""
DIAGONAL = 5.0
"""Score at the start of a source word in the place of the target word, above one far away."""
LIKELIHOOD = bdl.likelihoods.Mixture(bdl.likelihoods.Categorical())


@dataclass(frozen=True)
class Settings:
    """What all estimators share.

    Args:
        max_words: Longest sentence of training and test.
        vocabulary: Largest number of words, source and target.
        min_count: How often a word must be seen in training.
        units: Of embeddings and states.
        decoder_units: Of the hidden layer that the vocabulary's logits come from.
        batch_size: Pairs.
        learning_rate: Of Adam.
        dropout: Of embeddings and states.
        epochs: At most; the best by the nll of the validation pairs is kept.
        patience: Epochs without a better one before the end.
        warmup: Part of the epochs in which the weight of KL(q || p) rises from 0 to 1.
    """

    max_words: int = 25
    vocabulary: tuple[int, int] = (2000, 800)
    min_count: int = 3
    units: int = 64
    decoder_units: int = 48
    batch_size: int = 16
    learning_rate: float = 6e-3
    dropout: float = 0.2
    epochs: int = 8
    patience: int = 3
    warmup: float = 0.25


GENERATED = Settings(max_words=10, vocabulary=(400, 400), min_count=1, units=32, warmup=0.9)
CONTEXT = (
    "On the same gold pairs IBM model 1 (5 iterations of EM) has an AER of 0.579, and IBM model 2 of 0.551. Both see "
    "the target word, as p(z|x,y) does."
)


@dataclass(frozen=True)
class Result:
    """What came of one training.

    Args:
        estimator: One of `ESTIMATORS`.
        seed: Of weights, order and noise.
        perplexity: Of the test pairs.
        prior_error: Alignment error rate of p(z | x).
        posterior_error: Alignment error rate of p(z | x, y); None for soft attention, which has none.
        validation_nll: Of the epoch kept, in nats per pair.
        epochs: That were run.
        seconds: Of the training.
    """

    estimator: str
    seed: int
    perplexity: float
    prior_error: float
    posterior_error: float | None
    validation_nll: float
    epochs: int
    seconds: float


def network_of(estimator: str, encoder: Encoder, log_frequency: np.ndarray, settings: Settings) -> keras.Model:
    """From source words and earlier target words to what follows from each alignment."""
    layers, units = keras.layers, settings.units
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("source", "previous", "target")}
    inputs |= {name: keras.Input((None, 32), name=name) for name in ("source_position", "target_position")}
    # A position of zeros is padding; without a mask of their own, Concatenate would take the words' mask away.
    place = {side: layers.Masking()(inputs[f"{side}_position"]) for side in ("source", "target")}
    embed_target = layers.Embedding(len(encoder.target), units, mask_zero=True, name="target_words")

    value = layers.Embedding(len(encoder.source), units, mask_zero=True, name="source_words")(inputs["source"])
    value = layers.Dropout(settings.dropout)(value)
    # What stands beside a source word tells where it is: behind the translation of the target word before.
    context = layers.Bidirectional(layers.GRU(units // 2, return_sequences=True))(value)
    key = layers.Concatenate()([layers.Dense(units)(layers.Concatenate()([value, context])), place["source"]])

    state = layers.Dropout(settings.dropout)(embed_target(inputs["previous"]))
    state = layers.Dropout(settings.dropout)(layers.GRU(units, return_sequences=True)(state))
    # The features' inner products fall with distance, so that this is a diagonal at first, and any shift of it later.
    near = layers.Dense(32, use_bias=False, kernel_initializer=keras.initializers.Identity(DIAGONAL))
    query = layers.Concatenate()([layers.Dense(units)(state), near(place["target"])])

    infer = keras.Sequential([layers.Dense(2 * units, activation="tanh"), layers.Dense(units + 32)], name="inference")
    attend = bdl.layers.LatentAttention(
        estimator=estimator,
        inference_network=infer if estimator in INFERRED else None,
        decoder=keras.Sequential(
            [
                layers.Dense(settings.decoder_units, activation="tanh"),
                layers.Dense(len(encoder.target), bias_initializer=lambda *_, **__: log_frequency.astype("float32")),
            ],
            name="decoder",
        ),
        num_samples=4,
        name="attention",
    )
    return keras.Model(inputs, attend([query, value, key], target=embed_target(inputs["target"])))


def train(estimator: str, seed: int, corpus: Corpus, encoder: Encoder, settings: Settings) -> tuple[keras.Model, dict]:
    """The network after its best epoch, and the history."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    seen = [number for pair in corpus.train for number in encoder.target.numbers(pair.target)]
    frequency = np.bincount(seen, minlength=len(encoder.target)) + 0.1
    network = network_of(estimator, encoder, np.log(frequency / frequency.sum()), settings)
    # Where q is p there is no KL to warm up.
    kl_weight = bdl.elbo.LinearWarmup(settings.warmup) if estimator in INFERRED else 1.0
    model = bdl.VariationalModel(network, LIKELIHOOD, kl_weight=kl_weight)
    model.compile(keras.optimizers.Adam(settings.learning_rate, clipnorm=5.0), jit_compile=False)
    # The nll knows nothing of the KL: an epoch within the warm-up, at T < 1, must not be the best.
    first = math.ceil(settings.warmup * settings.epochs) if estimator in INFERRED else 0
    watch = {"patience": settings.patience, "mode": "min", "restore_best_weights": True, "start_from_epoch": first}
    stop = keras.callbacks.EarlyStopping("val_nll", **watch)
    history = model.fit(
        Batches(corpus.train, encoder, settings.batch_size, seed),
        validation_data=Batches(corpus.validation, encoder, settings.batch_size),
        epochs=settings.epochs,
        callbacks=[stop],
        verbose=0,
    ).history
    return network, history


def align(network: keras.Model, pairs: Sequence[Pair], encoder: Encoder) -> list[Aligned]:
    """Alignments and nll of pairs, the alignment summed out exactly."""
    found: list[Aligned | None] = [None] * len(pairs)
    to_numpy = keras.ops.convert_to_numpy
    is_soft = network.get_layer("attention").estimator == "soft"
    for group in by_length(pairs):
        inputs, labels = encoder.encode([pairs[index] for index in group])
        with bdl.layers.collect_latents() as reports:
            outputs = network(inputs, training=False)
        nll = to_numpy(LIKELIHOOD.nll(labels, outputs, labels != 0))
        if is_soft:
            prior = posterior = reports[0].latent.probabilities[:, 0]
        else:
            prior, posterior = LIKELIHOOD.alignments(outputs), LIKELIHOOD.posterior(labels, outputs)
        prior, posterior = to_numpy(prior), to_numpy(posterior)
        for row, index in enumerate(group):
            words = (slice(len(pairs[index].target)), slice(len(pairs[index].source)))
            found[index] = Aligned(prior[row][words], posterior[row][words], float(nll[row]))
    return found  # type: ignore[return-value]


def measure(network: keras.Model, corpus: Corpus, encoder: Encoder) -> tuple[float, float, float]:
    """Test perplexity, and alignment error rates of prior and posterior on the gold pairs."""
    nll = sum(each.nll for each in align(network, corpus.test, encoder))
    gold = align(network, corpus.gold, encoder)
    errors = (alignment_error_rate([getattr(g, kind) for g in gold], corpus.gold) for kind in ("prior", "posterior"))
    return float(np.exp(nll / sum(len(pair.target) for pair in corpus.test))), *errors


def run(estimator: str, seed: int, corpus: Corpus, encoder: Encoder, settings: Settings) -> tuple[Result, keras.Model]:
    """Trains one model and measures it."""
    start = time.perf_counter()
    network, history = train(estimator, seed, corpus, encoder, settings)
    seconds = time.perf_counter() - start
    perplexity, prior_error, posterior_error = measure(network, corpus, encoder)
    result = Result(
        estimator=estimator,
        seed=seed,
        perplexity=perplexity,
        prior_error=prior_error,
        posterior_error=None if estimator == "soft" else posterior_error,
        validation_nll=float(min(history["val_nll"])),
        epochs=len(history["val_nll"]),
        seconds=seconds,
    )
    return result, network


def mean_and_error(values: Sequence[float | None]) -> str:
    """Mean and standard error over seeds; a dash where there is no value."""
    if not values or None in values:
        return "-"
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{error}"


def difference(results: Sequence[Result], one: str, other: str, figure: str, of_other: str = "") -> list[float]:
    """Of a figure of two estimators, for every seed that both have."""
    others = {each.seed: getattr(each, of_other or figure) for each in results if each.estimator == other}
    mine = [each for each in results if each.estimator == one and each.seed in others]
    return [getattr(each, figure) - others[each.seed] for each in mine]


def report(results: Sequence[Result], context: str) -> None:
    """Prints a row for each estimator, its differences to soft attention, and whether the paper's order holds."""
    table = Table(title="Mean ± standard error over seeds; '- soft': difference to soft attention of the same seed")
    for column in ("estimator", "perplexity", "- soft", "AER p(z|x)", "- soft", "AER p(z|x,y)", "- soft", "seconds"):
        table.add_column(column, justify="left" if column == "estimator" else "right", no_wrap=True)
    figures = (("perplexity", ""), ("prior_error", ""), ("posterior_error", "prior_error"))
    for name in ESTIMATORS:
        found = [each for each in results if each.estimator == name]
        if not found:
            continue
        cells = []
        for figure, of_soft in figures:
            cells.append(mean_and_error([getattr(each, figure) for each in found]))
            is_soft = name == "soft"
            cells.append("" if is_soft else mean_and_error(difference(results, name, "soft", figure, of_soft)))
        table.add_row(name, *cells, f"{np.mean([each.seconds for each in found]):.0f}")
    console = Console(width=140)
    console.print(table)
    console.print(context)
    console.print("Deng et al. 2018 (table 2) have perplexities enumerate < marginal < soft. Here, seed by seed:")
    claims = [("enumerate", "marginal", *figures[0])]
    claims += [(latent, "soft", *figure) for figure in figures for latent in ("marginal", "enumerate")]
    for one, other, figure, of_other in claims:
        found_differences = difference(results, one, other, figure, of_other)
        if found_differences:
            console.print(
                f"  {figure} of {one} - {other}: {mean_and_error(found_differences)}, {verdict(found_differences)}"
            )


def verdict(differences: Sequence[float]) -> str:
    """Whether they are below zero, and if so by more than two standard errors."""
    if np.mean(differences) >= 0:
        return "does not hold"
    if len(differences) == 1:
        return "holds for the one seed"
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    return "holds" if np.mean(differences) < -2 * error else "holds, but within two standard errors of zero"


def main(
    data: Annotated[Path | None, typer.Option(help="Folder that holds align_europarl_en_es; else BDL_DATA.")] = None,
    estimators: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(ESTIMATORS),
    seeds: Annotated[int | None, typer.Option(help="Trainings of each: 3, or 1 on the made language.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most, of a training.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of results; those in it are kept.")] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG of one pair under soft attention and a latent one.")] = None,
) -> None:
    """Trains, measures and compares."""
    names = estimators.split(",")
    if unknown := set(names) - set(ESTIMATORS):
        raise typer.BadParameter(f"estimators must be among {', '.join(ESTIMATORS)}, not {', '.join(sorted(unknown))}.")
    warnings.filterwarnings("ignore", message="`network` has no variational layer")  # soft and marginal have none
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    settings = Settings() if folder else GENERATED
    settings = replace(settings, epochs=epochs or settings.epochs)
    corpus = europarl(folder, settings.max_words) if folder else generated()
    words = ([pair.source for pair in corpus.train], [pair.target for pair in corpus.train])
    encoder = Encoder(
        *(Vocabulary(side, size, settings.min_count) for side, size in zip(words, settings.vocabulary, strict=True))
    )
    sizes = ", ".join(f"{len(getattr(corpus, part))} {part}" for part in ("train", "validation", "test", "gold"))
    print(f"{sizes} pairs; {len(encoder.source)} source and {len(encoder.target)} target words", flush=True)

    stored = json.loads(output.read_text()) if output and output.exists() else {"results": [], "pictures": {}}
    if stored.get("settings", _plain(settings)) != _plain(settings):
        raise SystemExit(f"{output.name} holds results of other settings: {stored['settings']}. Choose another file.")
    results = [Result(**each) for each in stored["results"]]
    pictures = {name: Aligned(*map(np.array, arrays)) for name, arrays in stored["pictures"].items()}
    pictured = next(pair for pair in corpus.gold if 7 <= len(pair.target) <= 14)
    for seed in range(seeds if seeds is not None else 3 if folder else 1):
        for name in names:
            if (name, seed) in {(each.estimator, each.seed) for each in results}:
                continue
            result, network = run(name, seed, corpus, encoder, settings)
            results.append(result)
            pictures.setdefault(name, align(network, [pictured], encoder)[0])
            print(json.dumps(asdict(result)), flush=True)
            if output is not None:
                _store(output, settings, results, pictures)
    report(results, CONTEXT if folder else "A made language: its gold links are exact.")
    if figure is not None:
        latent = [name for name in ("marginal", "enumerate", "reinforce", "gumbel") if name in pictures][:1]
        draw({name: pictures[name] for name in ("soft", *latent) if name in pictures}, pictured, figure)


def _plain(settings: Settings) -> dict:
    """As JSON gives it back."""
    return json.loads(json.dumps(asdict(settings)))


def _store(path: Path, settings: Settings, results: Sequence[Result], pictures: dict[str, Aligned]) -> None:
    content = {
        "settings": asdict(settings),
        "results": [asdict(each) for each in results],
        "pictures": {
            name: (each.prior.round(4).tolist(), each.posterior.round(4).tolist(), each.nll)
            for name, each in pictures.items()
        },
    }
    bdl.report.write_atomically(path, json.dumps(content, indent=1))


if __name__ == "__main__":
    typer.run(main)
