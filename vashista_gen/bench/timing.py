"""Times of contestants that take turns, so that the machine's moods hit all of them alike.

On a CPU a turn often comes after one that read far more than the caches hold, as in a model, whose other layers come
between; where it does not, the sparse step finds its summaries in the cache. So its median is nearer to the cold time
and its fastest tenth to the warm one.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vashista_gen.bench.cases import Case
from vashista_gen.bench.contestants import Contestant

BUDGET_S = 2.5  # of timing for one case
ROUNDS = (20, 400)  # at least, at most
WARM_UPS = 3
GRAPH_CALLS = 4  # at least, in one CUDA graph
GRAPH_S = 2e-3  # at least of calls in it: starting a graph costs some microseconds, of which a call's share is then small


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, the fastest tenth, and how many rounds there were."""

    median: float
    fastest_tenth: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The summary of a series of measurements."""
        ordered = sorted(seconds)
        return cls(statistics.median(ordered), ordered[len(ordered) // 10], len(ordered))


def measure(contestants: Sequence[Contestant], case: Case, budget: float = BUDGET_S) -> dict[str, Timing]:
    """{name: times of one call}."""
    if case.inputs[0].q.device.type == "cuda":
        return _rounds({c.name: _replay(*_graph(c, case)) for c in contestants}, budget)
    turns = {c.name: _call(c, case) for c in contestants}
    return _rounds(turns, budget)


def _rounds(turns: dict[str, Callable[[int], float]], budget: float) -> dict[str, Timing]:
    """Every contestant once a round, in an order drawn anew for each: none always finds what another just read."""
    order, shuffle = list(turns), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(WARM_UPS):
        for name in order:
            turns[name](i)
    begun, least, most = time.perf_counter(), *ROUNDS
    for i in range(most):
        if i >= least and time.perf_counter() - begun > budget:
            break
        shuffle(order)
        for name in order:
            seconds[name].append(turns[name](i))
    return {name: Timing.of(series) for name, series in seconds.items()}


def _call(contestant, case):
    def turn(i):
        number = i % len(case.inputs)
        inputs = case.inputs[number]
        begun = time.perf_counter()
        contestant.run(number, inputs)
        return time.perf_counter() - begun

    return turn


def _graph(contestant, case):
    """(A CUDA graph of calls that take GRAPH_S together, over all sets of inputs in turn; how many calls.)"""
    sets = list(enumerate(case.inputs))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for number, inputs in sets[:WARM_UPS]:
            contestant.run(number, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    few = max(GRAPH_CALLS, len(sets))
    replay = _replay(_capture(contestant, sets, few), few)
    calls = calls_of_graph(len(sets), min(replay(i) for i in range(WARM_UPS)))
    return _capture(contestant, sets, calls), calls


def calls_of_graph(sets: int, seconds: float) -> int:
    """How many calls, of so many seconds each, a graph holds: GRAPH_S of them, whole turns through the sets of inputs."""
    return sets * math.ceil(max(GRAPH_CALLS, GRAPH_S / seconds) / sets)


def _capture(contestant, sets, calls):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            contestant.run(*sets[i % len(sets)])
    return graph


def _replay(graph, calls):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def turn(i):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    return turn
