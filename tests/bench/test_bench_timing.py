"""Turns, repeats, and what becomes of samples taken on a busy machine."""

import pytest
import torch

from bench.timing import CpuTimer, Effort, Times, calibrate, interleave


class Clock:
    """A timer whose calls take as long as they say, on a machine that is busy on request."""

    def __init__(self, busy=lambda n: False):
        self.count, self.busy, self.order = 0, busy, []

    def wait(self, limit_s):
        pass

    def sample(self, call, repeats):
        self.count += 1
        self.order.append(call)
        return sum(call() for _ in range(repeats)) / repeats, not self.busy(self.count)


def test_contestants_take_turns_and_nobody_keeps_a_neighbour():
    calls = {"a": lambda: 1.0, "b": lambda: 2.0, "c": lambda: 3.0}
    clock = Clock()
    times = interleave(calls, clock, Effort(rounds=6, sample_s=0.1, budget_s=60))
    names = {call: name for name, call in calls.items()}
    # Three samples each to find the repeats, then rounds.
    turns = "".join(names[call] for call in clock.order[9:])
    assert turns == "abcbcacab" * 2
    assert {name: t.samples for name, t in times.items()} == {
        "a": (1.0,) * 6,
        "b": (2.0,) * 6,
        "c": (3.0,) * 6,
    }


def test_short_calls_are_repeated_within_a_sample():
    (times,) = interleave({"a": lambda: 0.001}, Clock(), Effort(2, 0.01, 60)).values()
    assert times.repeats == 10


def test_busy_samples_are_left_out():
    clock = Clock(busy=lambda n: n % 2 == 0)
    (times,) = interleave({"a": lambda: 1.0}, clock, Effort(4, 0.1, 60)).values()
    assert len(times.samples) == 4 and times.discarded in (3, 4) and not times.contended


def test_a_machine_that_is_always_busy_gives_its_quickest_quarter():
    durations = iter([9.0] * 9 + [float(n) for n in range(100, 0, -1)])
    effort = Effort(rounds=4, sample_s=0.1, budget_s=0.0)
    (times,) = interleave({"a": lambda: next(durations)}, Clock(lambda n: True), effort).values()
    assert times.contended
    assert len(times.samples) == 1 and times.discarded == 2


def test_quantiles():
    times = Times((5.0, 1.0, 2.0, 4.0, 3.0))
    assert times.quantile(0.5) == 3.0
    assert times.quantile(0.2) == pytest.approx(1.8)
    assert times.to_json()["p80"] == pytest.approx(4.2)


def test_cpu_timer_measures_work():
    a = torch.randn(64, 64)
    timer = CpuTimer()
    # Turn about, since a machine may be busy for a while.
    samples = [[timer.sample(lambda: a @ a, n)[0] * n for n in (1, 200)] for _ in range(20)]
    few, many = map(min, zip(*samples, strict=True))
    assert many > 20 * few
    seconds, result = timer.once(lambda: a @ a)
    assert seconds > 0 and torch.equal(result, a @ a)


@pytest.mark.exhaustive
def test_calibration_is_of_this_machine():
    rates = calibrate(torch.device("cpu"), CpuTimer())
    # Between a very old core and a very large machine.
    assert 1e8 < rates["flops"]["float32"] < 1e14
    assert 1e8 < rates["bytes"] < 1e13
