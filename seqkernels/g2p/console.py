"""What the example prints: progress, tables, answers, and the prompt."""

import sys
from collections.abc import Iterable, Sequence

from .data import Dictionary, Symbols
from .errors import G2PError, require
from .model import Answer, Model, pronounce
from .train import Progress

# Word error rates of others on held-out words of the whole current dictionary, without stress, as
# the README of cmusphinx/g2p-seq2seq gives them (2016 and 2018); it splits in the same proportions.
PUBLISHED = (
    ("Phonetisaurus WFST", 33.89),
    ("LSTM 2 x 64", 39.61),
    ("LSTM 2 x 512", 31.14),
    ("Transformer 3 x 256", 30.2),
)


class ProgressBar:
    """A bar on a terminal, and a line at each development score everywhere.

    Args:
        minutes: budget of the training.
        quiet: print nothing.
    """

    def __init__(self, minutes: float, quiet: bool = False) -> None:
        self.tqdm = require("tqdm", "progress bars need").tqdm
        self.quiet = quiet
        self.scores = 0
        form = "{l_bar}{bar:30}| {n:.1f} of {total:g} min{postfix}"
        self.bar = self.tqdm(
            total=minutes,
            bar_format=form,
            mininterval=0.2,
            leave=False,
            disable=quiet or not sys.stderr.isatty(),
        )

    def __call__(self, progress: Progress, share: float) -> None:
        """Show the progress at this share of the budget."""
        if self.quiet:
            return
        if len(progress.dev) > self.scores:
            self.scores = len(progress.dev)
            _, wer, per = progress.dev[-1]
            loss = f"  loss {progress.loss[-1][1]:.3f}" if progress.loss else ""
            self.tqdm.write(
                f"{progress.seconds / 60:5.1f} min  epoch {progress.epochs:5.1f}{loss}"
                f"  dev WER {wer:.1f} %, PER {per:.1f} %"
            )
            sys.stdout.flush()
        speed = progress.tokens / max(progress.busy_seconds, 1e-9)
        text = f"epoch {progress.epochs:.1f}, {speed:,.0f} tokens/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(min(share, 1.0) * (self.bar.total or 0) - self.bar.n)

    def clear(self) -> None:
        """Take the bar off the terminal for good."""
        self.bar.close()


def published_table(own: Iterable[tuple[str, float]]) -> str:
    """Published word error rates and our own, best last."""
    rows = sorted([*PUBLISHED, *own], key=lambda row: -row[1])
    lines = [f"  {name:34} {wer:6.2f} %" for name, wer in rows]
    return "\n".join(("Word error rate, whole current dictionary, no stress:", *lines))


def format_answers(word: str, answers: Sequence[Answer]) -> str:
    """A word and its answers, the best on the first line."""
    lines = []
    for i, (pronunciation, probability) in enumerate(answers):
        name = word if i == 0 else ""
        lines.append(f"{name:20} {' '.join(pronunciation):40} {100 * probability:5.1f} %")
    return "\n".join(lines)


def say(model: Model, symbols: Symbols, words: Sequence[str], *, beam: int, best: int) -> bool:
    """Print pronunciations of words; False where one of them could not be read."""
    good = True
    for word in words:
        word = word.strip().lower()
        try:
            answers = pronounce(model, symbols, [word], beam=beam, best=min(best, beam))[0]
        except G2PError as error:
            print(error, file=sys.stderr)
            good = False
        else:
            print(format_answers(word, answers))
    return good


def examples(
    model: Model, symbols: Symbols, dictionary: Dictionary, words: Sequence[str], *, beam: int
) -> str:
    """Some words, what the model says and what the dictionary says."""
    lines = [f"{'word':16} {'model':36} dictionary"]
    for word, answers in zip(words, pronounce(model, symbols, words, beam=beam), strict=True):
        said = answers[0].pronunciation
        right = said in dictionary[word]
        known = "the same" if right else " | ".join(" ".join(p) for p in dictionary[word])
        lines.append(f"{word:16} {' '.join(said):36} {known}")
    return "\n".join(lines)


def prompt(model: Model, symbols: Symbols, *, beam: int) -> None:
    """Pronounce what the user types until an empty line or the end of input."""
    print("Type words to see how they are pronounced; an empty line ends.")
    while True:
        try:
            words = input("> ").split()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not words:
            return
        say(model, symbols, words, beam=beam, best=3)
