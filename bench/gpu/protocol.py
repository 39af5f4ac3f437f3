"""What the supervisor and its workers agree on: exit statuses, and files of one JSON object a line.

Torch-free.
"""

import json
from pathlib import Path

# Exit statuses of a worker beside 0. NO_BUILD: the carried build is stale or does not import.
# LOST: a case, which is recorded, has left the CUDA context unusable; a new process goes on.
NO_BUILD, LOST, NO_GPU = 3, 4, 5


def append(path: Path, record: dict) -> None:
    """Add a record to a file; what was written before stays whole whatever happens.

    Raises:
        ValueError: a number is not finite, which JSON has no word for.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    with path.open("a") as file:
        file.write(line)


def records(path: Path) -> list[dict]:
    """All records of a file, if there is one; half a line, of a killed process, is no record."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
