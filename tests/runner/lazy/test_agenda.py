"""The order of work: what guests wait for, the traced boot, the rest; and chunks that are wrong at the registry."""

from __future__ import annotations

from rootdisk.artifact.format import Chunk
from runner.lazy.agenda import Agenda, Job

KIB = 1 << 10


def agenda(count: int = 8, first: tuple[int, ...] = ()) -> Agenda:
    chunks = [Chunk(n * KIB, KIB, n * KIB, KIB, bytes([n]) * 32, False) for n in range(count)]
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
    for number in (5, 2):
        made.want(number)
    assert numbers(made) == [2, 3, 4, 5]


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
    for number in (1, 2, 3):
        made.want(number)
    job = made.take()
    assert job is not None
    end(made, job, wrong=1, wanted=(1, 2, 3))
    assert numbers(made) == [1]
    assert numbers(made) == [2, 3]


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
