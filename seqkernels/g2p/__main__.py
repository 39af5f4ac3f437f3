"""`python -m seqkernels.g2p`."""

from .._interrupt import end
from .cli import main

if __name__ == "__main__":
    end(main())
