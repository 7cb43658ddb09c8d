"""The beginning of programs in which gevent has replaced the threads.

A wait that stops such a process would never end, so it ends itself after a while and fails.
"""

from __future__ import annotations

from support.processes import LIMIT

PATCHED = f"""
import faulthandler; faulthandler.dump_traceback_later({LIMIT - 5}, exit=True)
from gevent import monkey; monkey.patch_all()
import sys, gevent, gevent.event
from sharedvol import *

def contend(make, extra=lambda: None):
    "One greenlet holds while two wait and a fourth runs. Returns how many were inside at once."
    entered, go, inside, most, done = gevent.event.Event(), gevent.event.Event(), [], [0], []
    def hold():
        with make():
            entered.set()
            go.wait()
    def want(number):
        with make():
            inside.append(number)
            most[0] = max(most[0], len(inside))
            gevent.sleep(0)
            inside.remove(number)
            done.append(number)
    greenlets = [gevent.spawn(hold)]
    entered.wait()
    greenlets += [gevent.spawn(want, number) for number in range(2)]
    for _ in range(5):
        gevent.sleep(0)  # greenlets are switched in turn: after the first turn both wait
    assert not done, done
    extra()
    assert not done, done
    go.set()
    gevent.joinall(greenlets, raise_error=True)
    assert sorted(done) == [0, 1]
    return most[0]
"""
