"""TLS contexts of callbacks: as few as there are different ones, and none is made on the event loop."""

import asyncio
import ssl
import threading
from typing import Any

import pytest

from openiodm.access.model import ApplicationKey
from openiodm.clock import Instant
from openiodm.notifications import sender as module
from openiodm.notifications.callbacks import Guard
from openiodm.notifications.model import CallbackSecurity, NoticeKey, SubscriptionKey
from openiodm.notifications.ports import Pending
from openiodm.notifications.sender import HttpSender
from tests.conftest import ManualClock

Pem = str | None


class Applications:
    """What applications have set, and the contexts that were made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set: dict[int, CallbackSecurity] = {}
        self.built: list[tuple[Pem, Pem, Pem]] = []
        self.threads: set[threading.Thread] = set()
        self.go_on = threading.Event()
        self.go_on.set()
        self.sender = HttpSender(Guard(), ManualClock(), 0.2, self.security)
        monkeypatch.setattr(module, "client_context", self.build)

    def build(self, *pem: Pem) -> ssl.SSLContext:
        self.go_on.wait(60)
        self.threads.add(threading.current_thread())
        self.built.append(pem)  # type: ignore[arg-type]
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def security(self, application: ApplicationKey) -> CallbackSecurity:
        return self.set[application]

    def change(self, application: int, at: int, ca: Pem = None, secret: Pem = None) -> None:
        self.set[application] = CallbackSecurity(ca, None, None, secret, Instant(at))

    async def context(self, application: int, changed_at: int | None) -> Any:
        return await self.sender._of_application(pending(application, changed_at))


def pending(application: int, changed_at: int | None) -> Pending:
    at = None if changed_at is None else Instant(changed_at)
    key, url = ApplicationKey(application), "https://192.0.2.1:443/"
    return Pending(NoticeKey(1), SubscriptionKey(1), "s", key, 1, url, "{}", 0, None, at)


@pytest.fixture
def applications(monkeypatch: pytest.MonkeyPatch) -> Applications:
    return Applications(monkeypatch)


async def test_applications_that_only_sign_share_the_plain_context(applications: Applications) -> None:
    plain, none = await applications.context(9, None)
    for n in range(5):
        applications.change(n, 1, secret=f"secret {n}")
        assert await applications.context(n, 1) == (plain, f"secret {n}")
    assert none is None
    assert applications.built == [(None, None, None)]


async def test_contexts_are_made_once_and_not_on_the_loop(applications: Applications) -> None:
    applications.change(1, 1, ca="one")
    found = await asyncio.gather(*(applications.context(n % 2, (None, 1)[n % 2]) for n in range(20)))
    assert len(set(found)) == 2
    assert applications.built == [(None, None, None), ("one", None, None)]
    assert threading.current_thread() not in applications.threads


async def test_beyond_the_bound_only_the_one_goes_that_was_used_longest_ago(
    applications: Applications, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONTEXTS", 2)
    for n in (1, 2, 3, 4):
        applications.change(n, 1, ca=f"of {n}" if n < 4 else None, secret=f"secret {n}")
    for n in (1, 2, 4, 1, 3, 4, 1, 3):
        await applications.context(n, 1)
    assert [ca for ca, _, _ in applications.built] == [None, "of 1", "of 2", "of 3"]
    await applications.context(2, 1)
    assert [ca for ca, _, _ in applications.built[4:]] == ["of 2"]


async def test_the_newest_of_what_an_application_has_set_is_for_older_notices_too(applications: Applications) -> None:
    applications.change(1, 1, ca="old", secret="a")
    await applications.context(1, 1)
    applications.change(1, 2, ca="new", secret="b")
    new = await applications.context(1, 2)
    assert new[1] == "b"
    assert await applications.context(1, 1) == new
    assert [ca for ca, _, _ in applications.built] == [None, "old", "new"]


async def test_an_attempt_does_not_wait_for_a_context_longer_than_for_its_receiver(applications: Applications) -> None:
    """The lease of the receiver is made out for that long."""
    applications.go_on.clear()
    try:
        assert await applications.sender.send(pending(1, None)) == "no answer within 0.2 s"
    finally:
        applications.go_on.set()
