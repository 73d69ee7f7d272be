"""The order of work: what guests wait for, the traced boot, the rest; and chunks that are wrong at the registry."""

from __future__ import annotations

import pytest

from rootdisk.artifact.format import Chunk
from runner.lazy.agenda import BESIDE_GUESTS, CALM_S, FETCHERS, GIVE_WAY_S, Agenda, Job

KIB = 1 << 10


def agenda(count: int = 8, first: tuple[int, ...] = ()) -> Agenda:
    chunks = [Chunk(n * KIB, KIB, n * KIB, KIB, n.to_bytes(32, "big"), False) for n in range(count)]
    made = Agenda(chunks, first)
    made.is_alone = False
    made.change(in_use=True, hurried=False, may_fill=True)
    return made


def numbers(made: Agenda) -> list[int]:
    job = made.take()
    assert job is not None
    return [made.number(chunk) for chunk in job.chunks]


def end(made: Agenda, job: Job, *, wrong: int | None = None, wanted: tuple[int, ...] = ()) -> None:
    """End a job: all of it has come, up to the chunk `wrong`."""
    for chunk in job.chunks:
        if made.number(chunk) == wrong:
            break
        made.done(chunk, is_fetched=True)
    failed = wrong is not None
    made.over(job, failed=failed, is_wrong=failed, is_wanted=lambda number: number in wanted)
    made._again_at = 0.0


def test_reads_near_each_other_share_a_request() -> None:
    made = agenda()
    made.may_fill = False
    for number in (5, 2):
        made.want(number)
    assert numbers(made) == [2, 3, 4, 5]


def test_what_follows_a_read_comes_with_it() -> None:
    """Up to what is there or on its way; not if only what is read is to be fetched."""
    made = agenda(1200)
    for number, job in ((700, range(700, 957)), (690, range(690, 700)), (2, range(2, 259))):
        made.want(number)
        assert numbers(made) == list(job)
    made.may_fill = False
    made.want(300)
    assert numbers(made) == [300]


def test_a_fill_pauses_while_reads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a while longer; but it is never held up for ever."""
    now = 1000.0
    monkeypatch.setattr("runner.lazy.agenda.time.monotonic", lambda: now)
    made = agenda(3000)
    made.want(0)
    job = made.take()
    assert job is not None
    fills = []
    for _ in range(100):
        now += 0.1
        made.want(0)  # it waits for what is on its way
        pause_s = made._calm_at(now) - now
        assert pause_s <= GIVE_WAY_S
        if pause_s <= 0:
            fills.append(now)
            fill = made.take()
            assert fill is not None
            assert fill.is_fill
            made.over(fill, failed=False, is_wrong=False, is_wanted=lambda _: False)
    assert len(fills) == 2
    end(made, job)
    assert made._calm_at(now) == now + CALM_S
    now += CALM_S
    assert made._calm_at(now) == now


def fills(made: Agenda) -> int:
    """Return how many requests a fill begins at once."""
    count = 0
    while made._may_fill() and made.take() is not None:
        count += 1
    return count


def test_a_fill_has_one_request_beside_guests() -> None:
    """It waits for reads only when guests have begun to read."""
    made = agenda(20_000)
    made.change(in_use=True, hurried=False, may_fill=True, starting=True)
    assert fills(made) == BESIDE_GUESTS
    assert made._calm_at(5.0) == 5.0
    made.change(in_use=True, hurried=False, may_fill=True)
    assert not fills(made)
    assert made._calm_at(5.0) > 5.0  # it has begun to read: more will follow


def test_a_traced_boot_has_several_requests() -> None:
    made = agenda(20_000, first=tuple(range(5000, 6000)))
    made.change(in_use=True, hurried=False, may_fill=True, starting=True)
    assert fills(made) == FETCHERS - 1
    for number in range(5000, 6000):
        made.done(made.chunks[number], is_fetched=True)
    made._filling = 0
    assert fills(made) == BESIDE_GUESTS


def test_requests_of_a_fill_fit_the_link() -> None:
    made = agenda(100_000)
    sizes = []
    for took_s in (0.01, 0.01, 0.15, 0.3, 0.15, 0.3, 0.3, 0.3, 0.3):
        job = made.take()
        assert job is not None
        sizes.append(len(job.chunks))
        for chunk in job.chunks:
            made.done(chunk, is_fetched=True)
        made.over(job, failed=False, is_wrong=False, is_wanted=lambda _: False, took_s=took_s)
    assert sizes == [256, 512, 1024, 1024, 1024, 1024, 1024, 512, 256]


def test_a_wrong_chunk_is_asked_for_alone_and_last() -> None:
    made = agenda()
    job = made.take()
    assert job is not None
    end(made, job, wrong=1)
    job = made.take()
    assert job is not None
    assert [made.number(chunk) for chunk in job.chunks] == [2, 3, 4, 5, 6, 7]
    end(made, job)
    job = made.take()
    assert job is not None
    assert [made.number(chunk) for chunk in job.chunks] == [1]
    end(made, job)
    assert made.take() is None


def test_a_read_of_a_wrong_chunk_holds_up_no_other_read() -> None:
    made = agenda()
    made.may_fill = False
    for number in (1, 2, 3):
        made.want(number)
    job = made.take()
    assert job is not None
    end(made, job, wrong=1, wanted=(1, 2, 3))
    assert numbers(made) == [1]
    assert numbers(made) == [2, 3]


def test_the_traced_boot_is_fetched_in_runs() -> None:
    """In the order of their first use, with what is in small gaps."""
    made = agenda(1000, first=(700, 40, 900, 30, 41))
    assert made._first == [700, *range(30, 42), 900]


def test_a_wrong_chunk_of_the_traced_boot_holds_up_no_fill() -> None:
    made = agenda(first=(6, 7))
    job = made.take()
    assert job is not None
    assert [made.number(chunk) for chunk in job.chunks] == [6, 7]
    end(made, job, wrong=6)
    job = made.take()
    assert job is not None
    assert [made.number(chunk) for chunk in job.chunks] == [7]
    end(made, job)
    assert numbers(made) == [0, 1, 2, 3, 4, 5]
