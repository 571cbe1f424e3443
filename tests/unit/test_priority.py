"""A thread that works goes last, and nobody else's priority changes."""

import os
import threading

from rlvid.priority import LOWEST, yield_to_starting


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_the_calling_thread_and_what_it_starts_go_last_and_no_other() -> None:
    before, found = niceness(), list[int]()

    def work() -> None:
        yield_to_starting()
        child = threading.Thread(target=lambda: found.append(niceness()))
        child.start()
        child.join()
        found.append(niceness())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [LOWEST, LOWEST]
    assert niceness() == before < LOWEST
