"""The speed-up over torch.nn that the project set itself, by case: misses are published as such."""

# T, N, I, H are those of the cpu suite; a target without "at N" holds everywhere in it.


def target(suite: str, case: dict, mode: str, device: str) -> float | None:
    """Least wanted speed-up over torch.nn, or None where there is no target.

    Args:
        suite: name of the suite.
        case: its JSON.
        mode: "inference" or "training".
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        return _cuda(suite, case, mode)
    if case["kind"] == "decode":
        return _cpu_decode(case)
    return _cpu(case, mode) if suite == "cpu" else 1.0


def _cpu(case: dict, mode: str) -> float | None:
    cell, batch = case["cell"], case["batch"]
    if case["rows"] != "padded":
        return 1.8 if mode == "training" else None
    if cell == "lstm":
        return 1.4 if batch <= 16 else {"inference": 1.0, "training": 1.15}[mode]
    if cell == "gru":
        few = batch <= 8
        return {"inference": 2.5 if few else 1.3, "training": 5.0 if few else 1.4}[mode]
    return 1.3


def _cpu_decode(case: dict) -> float | None:
    wanted = {(64, 256, 1024, 1): 1.6, (1, 256, 1024, 1): 1.8, (1, 128, 128, 2): 8.0}
    return wanted.get(tuple(case[k] for k in ("batch", "hidden_size", "vocabulary", "num_layers")))


def _kind(case: dict) -> str:
    """The suite whose targets a headline case has."""
    if case["rows"] != "padded":
        return "variable_length"
    if case["hidden_size"] <= 192:
        return "small_hidden"
    one = case["num_layers"] == 1 and not case["bidirectional"]
    fast = case["cell"] == "lstm" and case["dtype"] == "float16" and case["batch"] % 8 == 0
    return "cudnn_persistent" if one and fast else "standard"


def _cuda(suite: str, case: dict, mode: str) -> float | None:
    suite = _kind(case) if suite == "headline" else suite
    forward, both = {
        "cudnn_persistent": (1.3, 1.2),
        "standard": (2.5, 2.0),
        "layers": (2.5, 2.0),
        "variable_length": (10.0, 5.0),
        "small_hidden": (1.3, 1.2),
        "large": (1.0, 1.0),
        "decode": (15.0, None),
    }.get(suite, (1.0, 1.0))
    return forward if mode == "inference" else both
