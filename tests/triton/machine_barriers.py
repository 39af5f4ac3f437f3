"""Where the barriers of a kernel lie in its PTX: what a step does before, between and behind them.

Global loads and stores, barriers and the atomics of an exchange are the events of a graph that
follows the branches, so that the order in which the compiler lays out its blocks does not matter.
"""

import re
from pathlib import Path
from typing import NamedTuple

BARRIER = "tl.debug_barrier()"
EVENTS = {
    "release": r"\b(?:atom|red|st)\S*\.release",
    "acquire": r"\b(?:atom|ld)\S*\.acquire",
    "store": r"\bst\.global",
    "load": r"\bld\.global|\bcp\.async\S*\.global",
    "barrier": r"\bbar\.sync",
}


class Event(NamedTuple):
    """An instruction: its kind, "" for all that do not matter, and the source line it is of."""

    kind: str
    place: tuple[str, int] | None


class Graph:
    """The instructions of a kernel and where each can go on."""

    def __init__(self, ptx: str):
        files = dict(re.findall(r'\.file\s+(\d+) "([^"]+)"', ptx))
        self.events: list[Event] = []
        self.next: list[list[int]] = []
        self.headers: list[int] = []  # of loops that lie in no other
        labels, jumps, place = {}, [], None
        for line in ptx[ptx.index(".entry") :].splitlines():
            line = line.strip()
            if found := re.match(r"\.loc\s+(\d+) (\d+)", line):
                place = files[found[1]], int(found[2])
            elif found := re.match(r"(\$L\w+):(.*)", line):
                labels[found[1]] = len(self.events)
                if "Loop Header: Depth=1" in found[2]:
                    self.headers.append(len(self.events))
            elif line.endswith(";") and not line.startswith("."):
                kind = next((k for k, p in EVENTS.items() if re.search(p, line)), "")
                at = len(self.events)
                self.events.append(Event(kind, place))
                jump = re.search(r"\bbra\S*\s+(\$L\w+)", line)
                if jump:
                    jumps.append((at, jump[1]))
                ends = jump and not line.startswith("@") or re.match(r"(ret|exit|trap);", line)
                self.next.append([] if ends else [at + 1])
        for at, label in jumps:
            self.next[at].append(labels[label])

    def reached(self, starts: list[int], stops: set[int]) -> set[int]:
        """Every instruction on a path from behind `starts`, as far as `stops`."""
        found, ahead = set(), [n for s in starts for n in self.next[s]]
        while ahead:
            at = ahead.pop()
            if at in found or at >= len(self.events):
                continue
            found.add(at)
            if at not in stops:
                ahead.extend(self.next[at])
        return found

    def all_of(self, kind: str) -> list[int]:
        return [i for i, event in enumerate(self.events) if event.kind == kind]


def written_barriers(graph: Graph) -> set[int]:
    """The barriers that the source asks for; not what Triton adds."""
    places = ((at, graph.events[at].place) for at in graph.all_of("barrier"))
    return {
        at
        for at, (file, line) in places
        if BARRIER in Path(file).read_text().splitlines()[line - 1]
    }


def layers(graph: Graph, barriers: set[int], header: int) -> list[set[int]]:
    """The barriers of a turn in the order in which it meets them: first, second and so on.

    One line of the source is several barriers where a loop over stages is written out.

    Raises:
        ValueError: a turn can be made without one of them.
    """
    found: list[set[int]] = []
    ahead = {header}
    while ahead := graph.reached(sorted(ahead), barriers | {header}) & barriers:
        if ahead & set().union(*found) or header in graph.reached([header], ahead):
            raise ValueError(f"a step can be made without its barrier {len(found)}")
        found.append(ahead)
    return found


def step(ptx: str) -> list[list[str]]:
    """What one turn of the outermost loop that has barriers does: before the first, between each
    and the next, and behind the last, each the kinds among "load" and "store".

    Raises:
        ValueError: there is no barrier, or a turn can be made without one of them.
    """
    graph = Graph(ptx)
    every = written_barriers(graph)
    if not every:
        raise ValueError("the source asks for no barrier")
    turns = [h for h in graph.headers if every & graph.reached([h], set())]
    header = next(h for h in turns if h in graph.reached([h], set()))
    found = []
    for starts in ({header}, *layers(graph, every, header)):
        events = graph.reached(sorted(starts), every | {header})
        kinds = {graph.events[i].kind for i in events - {header}}
        found.append(sorted(kinds & {"load", "store"}))
    return found


def unordered(ptx: str) -> list[str]:
    """Steps of an exchange between programs that no barrier orders for all threads of one."""
    graph = Graph(ptx)
    barriers = set(graph.all_of("barrier"))
    found = []
    for before, behind in (("store", "release"), ("acquire", "load")):
        reached = graph.reached(graph.all_of(before), barriers)
        found += [f"{before}, {behind}" for i in reached if graph.events[i].kind == behind]
    return found
