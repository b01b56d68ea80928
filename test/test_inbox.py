"""The order of work in the inbox, and its counts."""

from __future__ import annotations

import threading

from decaf_ros.nodes.inbox import Inbox, InboxCounts


def _inbox(keep_latest: bool = True) -> tuple[Inbox, list]:
    done: list = []
    inbox = Inbox(done.append, keep_latest)
    inbox.open()
    return inbox, done


def _run_all(inbox: Inbox) -> None:
    while (work := inbox.take(wait=False)) is not None:
        work.run()


def test_only_the_newest_image_waits():
    inbox, done = _inbox()
    for image in "abc":
        inbox.put_image(image)
    assert inbox.counts() == InboxCounts(received=3, dropped=2, waiting=1)
    _run_all(inbox)
    assert done == ["c"]
    assert inbox.counts() == InboxCounts(received=3, dropped=2, waiting=0)


def test_without_dropping_all_images_wait_in_order():
    inbox, done = _inbox(keep_latest=False)
    for image in "abc":
        inbox.put_image(image)
    assert inbox.counts() == InboxCounts(received=3, dropped=0, waiting=3)
    _run_all(inbox)
    assert done == ["a", "b", "c"]


def test_cameras_take_turns():
    inbox, done = _inbox()
    for number in range(3):
        inbox.put_image(f"fast {number}", "fast")
    inbox.put_image("slow", "slow")
    inbox.put_image("fast 3", "fast")
    assert inbox.take().camera == "fast" and inbox.counts("fast") == InboxCounts(received=4, dropped=3, waiting=0)
    assert inbox.counts("slow") == InboxCounts(received=1, dropped=0, waiting=1) and inbox.counts() == InboxCounts()
    inbox.put_image("fast 4", "fast")
    inbox.put_image("slow 1", "slow")
    assert inbox.next_camera == "slow"
    _run_all(inbox)
    assert inbox.next_camera is None
    assert done == ["slow 1", "fast 4"], "a newer image keeps the place of the older one"


def test_cameras_whose_images_all_wait_take_turns():
    inbox, done = _inbox(keep_latest=False)
    for image in ("a1", "a2", "a3", "b1", "c1", "c2"):
        inbox.put_image(image, image[0])
    _run_all(inbox)
    assert done == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_commands_come_first_and_in_order():
    inbox, done = _inbox()
    for number in (1, 2):
        assert inbox.put_command(lambda number=number: done.append(number))
    _run_all(inbox)
    inbox.put_image("image")
    inbox.put_command(lambda: done.append(3))
    kinds = []
    while (work := inbox.take(wait=False)) is not None:
        kinds.append(work.camera)
        work.run()
    assert (done, kinds) == ([1, 2, 3, "image"], [None, ""])


def test_commands_cannot_starve_the_images():
    inbox, done = _inbox(keep_latest=False)
    for number in range(4):
        inbox.put_command(lambda number=number: done.append(number))
    for image in "ab":
        inbox.put_image(image)
    _run_all(inbox)
    assert done == [0, "a", 1, "b", 2, 3]


def test_closing_drops_images_but_not_commands():
    inbox, done = _inbox()
    inbox.put_image("image")
    inbox.put_command(lambda: done.append("command"))
    inbox.close()
    inbox.put_image("late")
    assert not inbox.put_command(lambda: done.append("late"))
    _run_all(inbox)
    assert done == ["command"]
    assert inbox.counts() == InboxCounts(received=2, dropped=2, waiting=0)
    inbox.open()
    inbox.put_image("again")
    _run_all(inbox)
    assert done == ["command", "again"]


def test_images_commands_and_closing_wake_the_worker():
    inbox, done = _inbox()
    taken = threading.Semaphore(0)

    def work() -> None:
        while (work := inbox.take()) is not None:
            work.run()
            taken.release()

    worker = threading.Thread(target=work)
    worker.start()
    inbox.put_image("image")
    assert taken.acquire(timeout=5)
    inbox.put_command(lambda: done.append("command"))
    assert taken.acquire(timeout=5)
    inbox.close()
    worker.join(timeout=5)
    assert not worker.is_alive() and done == ["image", "command"]


def test_counts_are_exact_under_load():
    inbox, done = _inbox()

    def work() -> None:
        while (work := inbox.take()) is not None:
            work.run()

    worker = threading.Thread(target=work)
    worker.start()
    for image in range(20_000):
        inbox.put_image(image)
    inbox.close()
    worker.join(timeout=10)
    assert inbox.counts() == InboxCounts(received=20_000, dropped=20_000 - len(done), waiting=0)
    assert done == sorted(done)
