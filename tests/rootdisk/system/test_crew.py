"""A crew does each job once, whoever waits works meanwhile, and nothing is begun after its end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rootdisk.system.crew import Crew
from tests.support.waiting import until

WAIT_S = 60


def test_every_job_once_and_by_all() -> None:
    done: list[int] = []
    threads: set[str] = set()
    both = threading.Barrier(2)

    def work(number: int) -> int:
        if number < 2:
            both.wait(WAIT_S)  # passes only if the one that waits for the results works too
        threads.add(threading.current_thread().name)
        done.append(number)
        return 2 * number

    with Crew(2) as crew:
        jobs = [crew.submit(work, number) for number in range(100)]
        assert [crew.result(job) for job in jobs] == [2 * number for number in range(100)]
    assert sorted(done) == list(range(100))
    assert threads == {"crew-1", threading.current_thread().name}


def test_who_waits_does_other_work() -> None:
    """The crew's thread is busy until the one that waits for it has done another job."""
    other_done = threading.Event()

    begun = threading.Event()

    def slow() -> str:
        begun.set()
        assert other_done.wait(WAIT_S)
        return "slow"

    with Crew(2) as crew:
        job = crew.submit(slow)
        assert begun.wait(WAIT_S)
        crew.submit(other_done.set)
        assert crew.result(job) == "slow"


def test_a_crew_of_one_does_what_is_asked_for() -> None:
    crew = Crew(1)
    done: list[int] = []
    jobs = [crew.submit(done.append, number) for number in range(3)]
    crew.result(jobs[1])
    assert done == [1]


def test_errors_are_raised_for_who_wants_the_result() -> None:
    def fail() -> None:
        raise ValueError("one")

    with Crew(2) as crew:
        job, good = crew.submit(fail), crew.submit(lambda: 2)
        assert crew.result(good) == 2
        with pytest.raises(ValueError, match="one"):
            crew.result(job)


def test_work_that_waits_for_work_does_no_other() -> None:
    """A job that holds a lock while it waits must not begin another that wants it."""
    lock, begun, go = threading.Lock(), threading.Event(), threading.Event()

    def inner() -> None:
        begun.set()
        assert go.wait(WAIT_S)

    def holding(crew: Crew) -> None:
        with lock:
            job = crew.submit(inner)
            assert begun.wait(WAIT_S)  # in the other thread
            wanted = crew.submit(wanting)
            threading.Timer(0.05, go.set).start()
            crew.result(crew.submit(int))
            crew.result(job)
        crew.result(wanted)

    def wanting() -> None:
        assert lock.acquire(timeout=WAIT_S)
        lock.release()

    with Crew(2) as crew:
        crew.result(crew.submit(holding, crew))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_work_may_wait_for_work(size: int) -> None:
    def job(crew: Crew) -> int:
        return crew.result(crew.submit(int, "1"))

    with Crew(size) as crew:
        jobs = [crew.submit(job, crew) for _ in range(50)]
        assert sum(crew.result(job) for job in jobs) == 50


def test_several_wait_at_once() -> None:
    def chain(crew: Crew, count: int) -> int:
        total = 0
        for number in range(count):
            total += crew.result(crew.submit(int, number))
        return total

    with Crew(2) as crew, ThreadPoolExecutor(4) as pool:
        found = [pool.submit(chain, crew, 500) for _ in range(4)]
        assert [one.result(WAIT_S) for one in found] == [sum(range(500))] * 4


def test_cancelled_work_is_not_begun_and_begun_work_ends() -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def slow() -> None:
        begun.set()
        assert go.wait(WAIT_S)
        done.append("slow")

    with Crew(2) as crew:
        running, waiting = crew.submit(slow), crew.submit(done.append, "waiting")
        assert begun.wait(WAIT_S)
        waiting.cancel()
        threading.Timer(0.05, go.set).start()
        running.cancel()
        assert done == ["slow"]
    assert done == ["slow"]


def test_the_end_does_not_begin_what_waits() -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[int] = []

    def slow() -> None:
        begun.set()
        assert go.wait(WAIT_S)

    def go_at_the_end() -> None:
        until(lambda: crew._is_closed)
        go.set()

    with Crew(2) as crew:
        crew.submit(slow)
        for number in range(10):
            crew.submit(done.append, number)
        assert begun.wait(WAIT_S)
        threading.Thread(target=go_at_the_end).start()
    assert not done


def test_threads_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were started end."""
    start = threading.Thread.start

    def fail_third(thread: threading.Thread) -> None:
        if thread.name == "crew-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_third)
    with pytest.raises(RuntimeError, match="new thread"), Crew(5):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("crew-")]


def test_the_end_of_the_program_ends_the_wait() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    crew = Crew(1)
    with pytest.raises(KeyboardInterrupt):
        crew.result(crew.submit(stop))
