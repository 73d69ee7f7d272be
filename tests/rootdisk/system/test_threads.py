"""Threads end with their block, whatever their actions do."""

from __future__ import annotations

import threading

import pytest

from rootdisk.system.threads import for_each, running
from tests.support.waiting import until


def test_each_item_once_on_a_few_threads() -> None:
    done: list[int] = []
    threads: set[str] = set()
    both = threading.Barrier(2)

    def note(number: int) -> None:
        if number < 2:
            both.wait(60)  # passes only if two run at the same time
        threads.add(threading.current_thread().name)
        done.append(number)

    for_each(range(100), note, 2)
    assert sorted(done) == list(range(100))
    assert len(threads) == 2
    for_each([], note, 2)


def test_the_first_error_stops_the_rest() -> None:
    begun: list[int] = []
    failing: list[threading.Thread] = []

    def fail(number: int) -> None:
        begun.append(number)
        if number == 1:
            failing.append(threading.current_thread())
            raise ValueError("one")
        until(lambda: failing and not failing[0].is_alive())

    with pytest.raises(ValueError, match="one"):
        for_each(range(100), fail, 2)
    assert sorted(begun) == [0, 1]


def test_a_block_that_fails_waits_for_its_threads() -> None:
    ended: list[str] = []
    go = threading.Event()

    def work() -> None:
        assert go.wait(60)
        ended.append("work")

    def block() -> None:
        with running([work, work]) as threads:
            assert not threads.wait(0.01)
            go.set()
            raise KeyError("block")

    with pytest.raises(KeyError, match="block"):
        block()
    assert ended == ["work", "work"]


def test_an_error_is_raised_while_others_still_run() -> None:
    go = threading.Event()

    def fail() -> None:
        raise ValueError("soon")

    def work() -> None:
        assert go.wait(60)

    with running([work, fail]) as threads:
        with pytest.raises(ValueError, match="soon"):
            threads.wait()
        go.set()


def test_actions_are_interrupted_if_the_program_is_to_end() -> None:
    go = threading.Event()

    def fail(number: int) -> None:
        if number:
            raise KeyboardInterrupt
        assert go.wait(60)

    with pytest.raises(KeyboardInterrupt):
        for_each(range(2), fail, 2, go.set)
    assert go.is_set()
    go.clear()

    def divide(number: int) -> None:
        assert 1 // number

    with pytest.raises(ZeroDivisionError):
        for_each([0], divide, 1, go.set)
    assert not go.is_set()
