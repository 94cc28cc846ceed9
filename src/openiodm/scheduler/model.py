"""Jobs: rows that say what is due when. A restart loses none; several servers share them by leases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openiodm.clock import Instant

LEASE_MS = 15_000  # a server that does not come back within this has lost its job
BACKOFF_MS = (1_000, 5_000, 15_000, 60_000, 300_000)


@dataclass(frozen=True, slots=True)
class Job:
    """One leased job. `epoch` is the fence: every commit of the job checks that it still holds."""

    id: int
    kind: str
    subject: int
    epoch: int
    cursor: int
    failures: int


@dataclass(frozen=True, slots=True)
class More:
    """There is more to do at once; go on from `cursor`."""

    cursor: int = 0


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing to do before `due_at`."""

    due_at: Instant


class Done:
    """The job is over and its row goes."""


Progress = More | Later | Done


class LeaseLost(Exception):
    """Somebody ended the job or made it due anew while a step of it ran: the step is undone."""


class JobRows(Protocol):
    """What the scheduler needs of storage, within one transaction."""

    async def lease(self, now: Instant, owner: str, until: Instant, limit: int) -> Sequence[Job]:
        """Takes due jobs whose lease is free or over, oldest first."""
        ...

    async def holds(self, job: Job) -> bool:
        """Is the lease still ours? Only a look: `advance`, `postpone` and `finish` tell it for good.

        The job's row is the last that a step locks, as it is for everybody who ends a job together with its subject.
        """
        ...

    async def exists(self, kind: str, subject: int) -> bool:
        """Is there such a job, due or not?"""
        ...

    async def put(self, kind: str, subject: int, due_at: Instant) -> None:
        """Makes the job due at `due_at`, new or not; a lease on it is void."""
        ...

    async def advance(self, job: Job, cursor: int, until: Instant) -> bool:
        """Keeps how far it has come and lengthens the lease. False: the lease was lost, keep nothing of this step."""
        ...

    async def postpone(self, job: Job, due_at: Instant, failures: int) -> bool:
        """Gives the lease back; due again at `due_at`. False as in `advance`."""
        ...

    async def release(self, owner: str | None) -> int:
        """Frees the leases of `owner` (None: of everybody); how many."""
        ...

    async def finish(self, job: Job) -> bool:
        """The leased job is over, unless its own last step made it due again or removed it. False as in `advance`."""
        ...

    async def remove(self, kind: str, subject: int) -> None:
        """It is no longer wanted, whoever holds it."""
        ...


class JobHandler(Protocol):
    """Does one bounded piece of a job in one transaction."""

    async def run(self, work: Any, job: Job, now: Instant) -> Progress:
        """One step; it commits together with its progress."""
        ...
