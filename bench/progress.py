"""A progress bar on stderr: one line that moves on a terminal, one line per case elsewhere."""

import io
import sys


class Progress:
    """Counts steps towards a known total.

    Args:
        total: steps to come.
    """

    def __init__(self, total: int):
        from tqdm import tqdm

        # `disable` would keep tqdm from counting: elsewhere than on a terminal it only formats.
        self._terminal = sys.stderr.isatty()
        file = sys.stderr if self._terminal else io.StringIO()
        self._bar = tqdm(total=total, leave=False, file=file, ncols=110)
        self._begun = False

    def step(self, text: str) -> None:
        """Say what is worked on now; the step before is done."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(self._begun)
        self._begun = True
        if self._terminal:
            self._bar.refresh()
        else:
            print(self._bar, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line."""
        self._bar.close()
