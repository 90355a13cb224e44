"""Sentence pairs with known word alignments, Europarl's or those of a small generated language, as batches."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

PADDING, UNKNOWN, START = 0, 1, 2
FREQUENCIES = 1.6 ** -np.arange(8)
"""Of the position features, in radians a word: from neighbours to whole sentences."""

Link = tuple[int, int]
"""Target position and source position, from 0."""


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation.

    Args:
        source: Words of the sentence.
        target: Words of its translation.
        links: Gold links; empty where they are not known.
    """

    source: list[str]
    target: list[str]
    links: frozenset[Link] = frozenset()


@dataclass(frozen=True)
class Corpus:
    """Pairs to train on, to stop training by, to measure perplexity on, and with gold links; no pair is in two."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    gold: list[Pair]


def europarl(folder: Path, max_words: int) -> Corpus:
    """English and Spanish; gold pairs of any length, the others of at most `max_words` words a side.

    Raises:
        SystemExit: if a file is missing.
    """
    folder = folder / "align_europarl_en_es"
    gold_rows = [(row[0].split(), row[1].split()) for row in _rows(folder / "dev.tsv.gz")]
    links: list[set[Link]] = [set() for _ in gold_rows]
    for sentence, source, target in _rows(folder / "dev_gold.tsv.gz"):
        links[int(sentence) - 1].add((int(target) - 1, int(source) - 1))
    gold = [Pair(*row, frozenset(found)) for row, found in zip(gold_rows, links, strict=True)]
    seen = {(" ".join(pair.source), " ".join(pair.target)) for pair in gold}
    pairs = []
    for row in _rows(folder / "train.tsv.gz"):
        source, target = (side.split() for side in (*row, "")[:2])
        fits = 0 < len(source) <= max_words and 0 < len(target) <= max_words
        # The gold pairs are part of the training file; links are measured on pairs that no model has seen.
        if fits and (" ".join(source), " ".join(target)) not in seen:
            seen.add((" ".join(source), " ".join(target)))
            pairs.append(Pair(source, target))
    order = np.random.default_rng(0).permutation(len(pairs))
    pairs = [pairs[index] for index in order]
    return Corpus(train=pairs[650:], validation=pairs[500:650], test=pairs[:500], gold=gold)


def generated(num_pairs: int = 1500) -> Corpus:
    """A language that puts verbs first, then the two noun phrases in either order, with adjectives behind their noun.

    An adjective takes the ending of its noun's class, so that a word of the target follows from the word that it
    translates and from the one before it.
    """
    rng = np.random.default_rng(0)
    used: set[str] = set()
    articles, adjectives, nouns, verbs = (_lexicon(rng, size, used) for size in (4, 24, 48, 24))

    def sentence() -> Pair:
        (verb, verb_translation), source, phrases = verbs[rng.integers(len(verbs))], [], []
        for article, noun in zip(_two(rng, len(articles)), _two(rng, len(nouns)), strict=True):
            at, adjective = len(source), adjectives[rng.integers(len(adjectives))]
            if rng.random() < 0.5:
                source += [articles[article][0], nouns[noun][0]]
                phrases.append([(articles[article][1], at), (nouns[noun][1], at + 1)])
            else:
                source += [articles[article][0], adjective[0], nouns[noun][0]]
                bent = adjective[1] + "aoi"[noun % 3]
                phrases.append([(articles[article][1], at), (nouns[noun][1], at + 2), (bent, at + 1)])
            if len(phrases) == 1:
                verb_at = len(source)
                source.append(verb)
        order = (0, 1) if rng.random() < 0.5 else (1, 0)
        target = [(verb_translation, verb_at), *phrases[order[0]], *phrases[order[1]]]
        return Pair(source, [word for word, _ in target], frozenset((t, at) for t, (_, at) in enumerate(target)))

    pairs = [sentence() for _ in range(num_pairs + 500)]
    return Corpus(train=pairs[500:], validation=pairs[:100], test=pairs[100:300], gold=pairs[300:500])


class Vocabulary:
    """Numbers of the words seen most often; every other word is `UNKNOWN`.

    Args:
        sentences: To count words in.
        size: Largest number of words, with the three numbers that are no words.
        min_count: How often a word must be seen.
    """

    def __init__(self, sentences: Iterable[Sequence[str]], size: int, min_count: int) -> None:
        counts = Counter(word for sentence in sentences for word in sentence).most_common(size - 3)
        self._numbers = {word: START + 1 + rank for rank, (word, count) in enumerate(counts) if count >= min_count}

    def __len__(self) -> int:
        return START + 1 + len(self._numbers)

    def numbers(self, words: Sequence[str]) -> list[int]:
        """Of the words of a sentence."""
        return [self._numbers.get(word, UNKNOWN) for word in words]


@dataclass(frozen=True)
class Encoder:
    """Pairs as arrays: what the network reads, and its labels.

    Args:
        source: Vocabulary of the sentences.
        target: Vocabulary of the translations.
    """

    source: Vocabulary
    target: Vocabulary

    def encode(self, pairs: Sequence[Pair]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inputs and labels `(pairs, target words)`, padded to the longest pair.

        `previous` is the target one word late, all that the query of a word may see of it; `target` is the word
        itself, which only the inference network sees.
        """
        source = _padded([self.source.numbers(pair.source) for pair in pairs])
        target = _padded([self.target.numbers(pair.target) for pair in pairs])
        starts = np.full((len(pairs), 1), START)
        previous = np.where(target == PADDING, PADDING, np.concatenate([starts, target[:, :-1]], axis=1))
        lengths = np.maximum((source != PADDING).sum(axis=1), 1)
        inputs = {
            "source": source,
            "source_position": positions(source != PADDING, lengths),
            "previous": previous,
            "target_position": positions(target != PADDING, lengths),
            "target": target,
        }
        return inputs, target


def positions(exists: np.ndarray, source_lengths: np.ndarray) -> np.ndarray:
    """Features `(pairs, words, 32)` whose inner products depend on the distance of two positions alone.

    Half of them count in words, half in lengths of the source; the target's own length is not known before its end.
    They are zero for words that do not exist.
    """
    places = np.arange(exists.shape[1])[None, :, None]
    relative = places / source_lengths[:, None, None] * np.pi * np.arange(1, 9) / 2
    absolute = np.broadcast_to(places * FREQUENCIES, relative.shape)
    angles = np.concatenate([absolute, relative], axis=-1)
    return (np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) / 4.0 * exists[:, :, None]).astype("float32")


class Batches(keras.utils.PyDataset):
    """Batches of pairs of similar length, others in each epoch.

    Args:
        pairs: All of them.
        encoder: Makes arrays of them.
        batch_size: Of all batches but the last.
        seed: Of the order.
    """

    def __init__(self, pairs: Sequence[Pair], encoder: Encoder, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self._pairs, self._encoder, self._batch_size = pairs, encoder, batch_size
        self._rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._pairs) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return self._batches[index]

    def on_epoch_end(self) -> None:
        """Draws pairs of similar length together again."""
        lengths = [len(pair.target) + self._rng.uniform(0, 4) for pair in self._pairs]
        chunks = _chunks(np.argsort(lengths), self._batch_size)
        if len(chunks) > 3:  # Keras reads from the first two batches which lengths differ between batches
            chunks[1], chunks[-2] = chunks[-2], chunks[1]
        self._batches = [self._encoder.encode([self._pairs[index] for index in chunk]) for chunk in chunks]


def by_length(pairs: Sequence[Pair], max_cells: int = 8192) -> Iterator[list[int]]:
    """Numbers of pairs in groups of similar length, of at most `max_cells` target words times source words."""
    group: list[int] = []
    longest = [0, 0]
    for index in sorted(range(len(pairs)), key=lambda index: len(pairs[index].target)):
        pair = pairs[index]
        grown = [max(longest[0], len(pair.target)), max(longest[1], len(pair.source))]
        if group and (len(group) + 1) * grown[0] * grown[1] > max_cells:
            yield group
            group, grown = [], [len(pair.target), len(pair.source)]
        group.append(index)
        longest = grown
    if group:
        yield group


def alignment_error_rate(alignments: Sequence[np.ndarray], pairs: Sequence[Pair]) -> float:
    """1 - F1 of linking each target word with its most probable source word; all gold links are sure.

    Args:
        alignments: Of each pair, probabilities `(target words, source words)`.
        pairs: With their gold links.
    """
    found = [{(t, int(s)) for t, s in enumerate(each.argmax(axis=-1))} for each in alignments]
    correct = sum(len(links & pair.links) for links, pair in zip(found, pairs, strict=True))
    return 1.0 - 2.0 * correct / (sum(map(len, found)) + sum(len(pair.links) for pair in pairs))


def _rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise SystemExit(
            f"{path.name} is missing in {path.parent}. It holds sentence pairs of Europarl (statmt.org/europarl), and "
            "200 of them with links by hand, one a line, with tabs between columns; without --data a language is made."
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t") for line in lines][1:]


def _lexicon(rng: np.random.Generator, size: int, used: set[str]) -> list[tuple[str, str]]:
    """Source words and their translations, none of them in use."""

    def word() -> str:
        while True:
            made = "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(2))
            if made not in used:
                used.add(made)
                return made + rng.choice(list("lnrst"))

    return [(word(), word()) for _ in range(size)]


def _two(rng: np.random.Generator, number: int) -> list[int]:
    """Different ones."""
    return [int(each) for each in rng.choice(number, size=2, replace=False)]


def _chunks(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _padded(sentences: Sequence[Sequence[int]]) -> np.ndarray:
    numbers = np.full((len(sentences), max(map(len, sentences))), PADDING, "int32")
    for row, sentence in zip(numbers, sentences, strict=True):
        row[: len(sentence)] = sentence
    return numbers
