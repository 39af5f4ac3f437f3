"""Word and phoneme error rates, as the published results count them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .data import Pronunciation


@dataclass
class ErrorCounts:
    """Errors over some words; two of them can be added.

    Attributes:
        words: words scored.
        wrong: words whose output equals none of their pronunciations.
        edits: sum of the edit distances to the closest pronunciation.
        phonemes: sum of the lengths of those pronunciations.
    """

    words: int = 0
    wrong: int = 0
    edits: int = 0
    phonemes: int = 0

    @property
    def wer(self) -> float:
        """Word error rate, per cent."""
        return 100.0 * self.wrong / max(self.words, 1)

    @property
    def per(self) -> float:
        """Phoneme error rate, per cent."""
        return 100.0 * self.edits / max(self.phonemes, 1)

    def rates(self) -> dict[str, float]:
        """Both rates by name."""
        return {"wer": round(self.wer, 3), "per": round(self.per, 3)}


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn a into b (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def count_errors(
    outputs: Iterable[Pronunciation], references: Iterable[Sequence[Pronunciation]]
) -> ErrorCounts:
    """Score one output for each word against all pronunciations of the word.

    The closest pronunciation is the one with the smallest distance per phoneme.

    Args:
        outputs: the best output for each word.
        references: the word's pronunciations.
    """
    counts = ErrorCounts()
    for output, pronunciations in zip(outputs, references, strict=True):
        counts.words += 1
        if output in pronunciations:
            counts.phonemes += len(output)
            continue
        distances = [(edit_distance(output, one), len(one)) for one in pronunciations]
        edits, phonemes = min(distances, key=lambda pair: pair[0] / pair[1])
        counts.wrong += 1
        counts.edits += edits
        counts.phonemes += phonemes
    return counts
