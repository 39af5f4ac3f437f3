"""The command line: `python -m seqkernels COMMAND`."""

import argparse
import importlib
import sys

from ._interrupt import INTERRUPTED, end

# Each command is a module with `main(arguments)`, imported only when it is called.
COMMANDS = {
    "info": ("seqkernels.info", "what this installation can do, and why not more"),
    "g2p": ("seqkernels.g2p", "train a model that pronounces words, and ask it"),
    "gradients": ("seqkernels.gradients", "how gradients vanish or explode over time"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the named command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m seqkernels", description=__doc__)
    commands = "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{commands}"
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the command")
    parsed = parser.parse_args(arguments)
    try:
        module = importlib.import_module(COMMANDS[parsed.command][0])
        return module.main(parsed.arguments) or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    end(main())
