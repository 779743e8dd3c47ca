"""Time that runs out, and a request that nobody waits for any more."""

import threading

import pytest

from moonlet.chat.deadline import Deadline
from moonlet.errors import MediaError


def test_time_left() -> None:
    assert 59 < Deadline(60).left() <= 60
    with pytest.raises(MediaError, match="more than the 0 seconds allowed"):
        Deadline(0).left()


def test_a_stop_comes_before_the_end() -> None:
    stop = threading.Event()
    deadline = Deadline(60, stop)
    deadline.left()
    stop.set()
    with pytest.raises(MediaError, match="cancelled"):
        deadline.left()


@pytest.mark.parametrize("stopped", [True, False])
def test_what_blocks_is_ended(stopped: bool) -> None:
    stop, ended = threading.Event(), threading.Event()
    with Deadline(60 if stopped else 0.1, stop).ending(ended.set):
        if stopped:
            stop.set()
        assert ended.wait(20)


def test_nothing_is_ended_after_the_block() -> None:
    calls: list[int] = []
    deadline = Deadline(0.2)
    with deadline.ending(lambda: calls.append(1)):
        pass
    threading.Event().wait(0.4)
    assert not calls
    assert not [thread for thread in threading.enumerate() if thread.name == "moonlet-deadline"]


def test_a_part_of_the_work_may_have_less_time() -> None:
    stop = threading.Event()
    whole = Deadline(60, stop)
    assert 9 < whole.within(10).left() <= 10
    assert 59 < whole.within(100).left() <= 60
    part = whole.within(10)
    stop.set()
    with pytest.raises(MediaError, match="cancelled"):
        part.left()
    with pytest.raises(MediaError, match="cancelled"):
        whole.within(10)
