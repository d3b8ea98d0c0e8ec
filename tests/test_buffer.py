"""The bounded deque: order, bound, blocking and waking."""

import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_scanner.abort import Abort
from edge_scanner.buffer import TileBuffer
from edge_scanner.errors import AbortedError


@dataclass(frozen=True)
class Item:
    name: int
    nbytes: int


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 60))
def test_everything_comes_out_in_order_and_the_bound_holds(sizes, bound):
    buffer: TileBuffer[Item] = TileBuffer(bound, Abort())
    items = [Item(n, size) for n, size in enumerate(sizes)]
    producer = threading.Thread(target=lambda: ([buffer.append(i) for i in items], buffer.close()))
    producer.start()
    assert list(buffer) == items
    producer.join()
    assert buffer.high_water_bytes <= max([bound, *sizes])
    assert buffer.nbytes == 0


def test_random_access_and_trim():
    buffer: TileBuffer[Item] = TileBuffer(100, Abort())
    for n in range(5):
        buffer.append(Item(n, 10))
    assert [buffer[0].name, buffer[-1].name, len(buffer)] == [0, 4, 5]
    buffer.trim(3)
    assert [buffer[0].name, len(buffer), buffer.nbytes] == [3, 2, 20]
    buffer.trim(99)
    assert len(buffer) == 0
    with pytest.raises(IndexError):
        buffer[0]


@pytest.mark.parametrize("blocked", ["append", "popleft"])
def test_a_blocked_call_wakes_on_abort(blocked):
    abort = Abort()
    buffer: TileBuffer[Item] = TileBuffer(10, abort)
    if blocked == "append":
        buffer.append(Item(0, 10))
    woken, entered = [], threading.Event()

    def call():
        entered.set()
        with pytest.raises(AbortedError):
            buffer.append(Item(1, 10)) if blocked == "append" else buffer.popleft()
        woken.append(True)

    thread = threading.Thread(target=call)
    thread.start()
    entered.wait()
    abort.set(ValueError("cause"))
    thread.join(timeout=60)
    assert woken == [True]
    assert isinstance(abort.cause, ValueError)


def test_a_full_buffer_makes_the_producer_wait_and_counts_it():
    buffer = TileBuffer(10, Abort())
    buffer.append(Item(0, 10))
    appended = threading.Event()
    asked = threading.Event()

    class Asked:
        """An item that tells when the buffer asks whether it fits."""

        name = 1

        @property
        def nbytes(self):
            asked.set()
            return 10

    producer = threading.Thread(target=lambda: (buffer.append(Asked()), appended.set()))
    producer.start()
    assert asked.wait(60)
    assert len(buffer) == 1, "asked while the producer had the lock, answered once it waits"
    assert not appended.is_set()
    assert buffer.popleft().name == 0
    assert appended.wait(60)
    producer.join()
    assert buffer.stall_s > 0


def test_the_first_cause_is_kept():
    abort = Abort()
    abort.set()
    abort.set(ValueError("late"))
    assert abort.cause is None
    assert abort
