"""The event bus, the table of replies and the lease on their own."""

from __future__ import annotations

import json
import select
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_scanner.control.events import TOPICS, EventBus
from edge_scanner.control.replies import Replies


@pytest.fixture
def bus() -> EventBus:
    return EventBus(bound=8, wall_s=lambda: 12.5)


def readable(bus: EventBus) -> bool:
    return bool(select.select([bus.fileno()], [], [], 0)[0])


def test_an_event_is_two_frames_with_number_and_time(bus: EventBus) -> None:
    assert bus.publish("tile", {"index": 3, "text": "é"}) == 1
    assert bus.publish("heartbeat", {}) == bus.seq == 2
    (topic, body), (_, empty) = bus.take()
    assert topic == b"tile"
    assert json.loads(body) == {"v": 1, "seq": 1, "t": 12.5, "session": bus.session, "index": 3, "text": "é"}
    assert json.loads(empty) == {"v": 1, "seq": 2, "t": 12.5, "session": bus.session}


def test_the_descriptor_is_readable_while_events_wait(bus: EventBus) -> None:
    assert not readable(bus)
    for _ in range(20):
        bus.publish("log", {})
    assert readable(bus)
    bus.take()
    assert not readable(bus)
    bus.publish("log", {})
    assert readable(bus)


def test_the_bound_drops_the_oldest_and_leaves_a_gap(bus: EventBus) -> None:
    for n in range(20):
        bus.publish("progress", {"n": n})
    assert [json.loads(body)["seq"] for _, body in bus.take()] == list(range(13, 21))
    assert bus.seq == 20


def test_threads_share_one_numbering() -> None:
    bus = EventBus()
    threads = [threading.Thread(target=lambda: [bus.publish("tile", {}) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(body)["seq"] for _, body in bus.take()] == list(range(1, 2001))


@pytest.mark.parametrize(
    ("topic", "fields"), [("tiles", {}), ("tile", {"seq": 1}), ("tile", {"x": float("nan")}), ("log", {"t": 0})]
)
def test_what_clients_could_not_read_is_refused(bus: EventBus, topic: str, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        bus.publish(topic, fields)
    assert bus.seq == 0


def test_publishing_after_the_end_does_no_harm(bus: EventBus) -> None:
    bus.close()
    assert bus.publish(min(TOPICS), {}) == 1
    bus.close()


@given(st.lists(st.tuples(st.integers(0, 40).map(str), st.binary(min_size=1, max_size=60)), max_size=120))
def test_replies_keep_the_newest_within_both_bounds(puts: list[tuple[str, bytes]]) -> None:
    replies = Replies(count=10, max_bytes=40)
    kept: list[tuple[str, bytes]] = []
    for name, reply in puts:
        if replies.get(name) is None:
            replies.put(name, reply)
            kept.append((name, reply))
            while len(kept) > 10 or sum(len(r) for _, r in kept) > 40:
                kept.pop(0)
        assert {n for n, _ in puts if replies.get(n) is not None} == {n for n, _ in kept}
    assert all(replies.get(n) == r for n, r in kept)
