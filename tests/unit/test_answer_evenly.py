"""A server's process: what is there when it begins is left alone by the garbage collection, what comes later is not."""

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

from openiodm.app import GARBAGE_THRESHOLDS, SWITCH_INTERVAL_S, answer_evenly


class Knot:
    """Garbage that only the collection finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def _process_as_before() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_process_as_before")
def test_the_collection_looks_only_at_what_came_after_the_start() -> None:
    knot = Knot()
    answer_evenly()
    before = weakref.ref(knot)
    after = weakref.ref(Knot())
    del knot
    gc.collect()
    assert before() is not None
    assert after() is None
    assert gc.isenabled()
    assert gc.get_threshold() == GARBAGE_THRESHOLDS
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)


@pytest.mark.usefixtures("_process_as_before")
def test_what_is_garbage_at_the_start_goes() -> None:
    knot = weakref.ref(Knot())
    answer_evenly()
    assert knot() is None
