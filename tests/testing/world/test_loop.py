"""The loops of simulated processes: turns, their own time, and their end."""

from __future__ import annotations

import math

import pytest
import trio
import trio.lowlevel

from clusternode.testing.world.loop import STEPS_MAX, Loop, LoopNeverRests


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_runs_only_in_its_turns_and_says_when_it_wants_the_next_one():
    time, seen = Time(), []

    async def main():
        seen.append(trio.current_time())
        await trio.sleep(5.0)
        seen.append(trio.current_time())

    loop = Loop(main, time)
    assert seen == []

    loop.turn()
    assert seen == [100.0]
    assert loop.deadline == 105.0

    time.now = 105.0
    loop.turn()
    assert seen == [100.0, 105.0]
    assert loop.is_over
    assert loop.failure is None


def test_what_is_in_the_inbox_is_called_in_the_next_turn():
    news, seen = trio.Event(), []

    async def main():
        await news.wait()
        seen.append("news")

    loop = Loop(main, Time())
    loop.turn()
    assert loop.deadline == math.inf

    loop.inbox.append((news.set, ()))
    assert not loop.is_over
    loop.turn()

    assert seen == ["news"]
    assert loop.is_over


def test_a_visit_lets_no_task_run():
    time = Time()
    seen: list[object] = []

    async def main():
        await trio.sleep(1.0)
        seen.append("task")

    loop = Loop(main, time)
    loop.turn()
    time.now = 101.0
    loop.visit(lambda: seen.append(trio.current_time()))

    assert seen == [101.0]
    loop.turn()
    assert seen == [101.0, "task"]


def test_what_main_raises_is_kept():
    async def main():
        await trio.lowlevel.checkpoint()
        raise ValueError("broken")

    loop = Loop(main, Time())
    loop.turn()

    assert loop.is_over
    assert isinstance(loop.failure, ValueError)


@pytest.mark.slow
def test_a_task_that_never_waits_ends_its_loop():
    assert STEPS_MAX >= 100_000

    async def main():
        while True:
            for _ in range(1000):
                trio.current_time()
            await trio.lowlevel.checkpoint()

    loop = Loop(main, Time())
    loop.turn()

    assert loop.is_over
    assert loop.failure is not None
    # Raised to the task, or to trio, which says so in an error of its own.
    assert LoopNeverRests in (type(loop.failure), type(loop.failure.__cause__))
