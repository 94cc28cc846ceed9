"""Draws the two state machines from their tables: `python -m openiodm.campaigns.diagrams > docs/states.md`."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TypeVar

from openiodm.campaigns import states
from openiodm.campaigns.states import (
    CAMPAIGN_FINAL,
    CAMPAIGN_TRANSITIONS,
    COUNTER_OF,
    FINAL,
    UPGRADE_TRANSITIONS,
    CampaignStatus,
    UpgradeState,
)

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)

_TEXT = """\
# States

This page is generated from `src/openiodm/campaigns/states.py` and a test keeps it so. Write it anew with
`python -m openiodm.campaigns.diagrams > docs/states.md`.

{rules}

## An upgrade: one device in a campaign

```mermaid
{upgrade}
```

Every state counts in exactly one of a campaign's counters, and their sum is `total`:

| counter | states |
| --- | --- |
{counters}

## A campaign

```mermaid
{campaign}
```
"""


def diagram(table: Mapping[S, Mapping[E, S]], first: S, final: Iterable[S]) -> str:
    """A Mermaid state diagram, a line for each pair of states; events that lead the same way share it."""
    return "\n".join(["stateDiagram-v2", f"    [*] --> {first.value}", *_edges(table), *_ends(table, final)])


def _edges(table: Mapping[S, Mapping[E, S]]) -> Iterator[str]:
    for source, events in table.items():
        for target in dict.fromkeys(events.values()):
            names = ", ".join(event.value for event, to in events.items() if to is target)
            yield f"    {source.value} --> {target.value}: {names}"


def _ends(table: Mapping[S, Mapping[E, S]], final: Iterable[S]) -> Iterator[str]:
    ends = frozenset(final)
    return (f"    {state.value} --> [*]" for state in table if state in ends)


def _counters() -> Iterator[str]:
    for counter in dict.fromkeys(COUNTER_OF.values()):
        names = ", ".join(f"`{state.value}`" for state in UpgradeState if COUNTER_OF[state] is counter)
        yield f"| `{counter.value}` | {names} |"


def _rules() -> str:
    """The rules in prose, as the table's own module states them above it."""
    assert states.__doc__ is not None
    return states.__doc__.partition("\n\n")[2].strip().replace("\n * ", "\n* ").replace("\n   ", "\n  ")


def page() -> str:
    """The whole of docs/states.md."""
    return _TEXT.format(
        rules=_rules(),
        upgrade=diagram(UPGRADE_TRANSITIONS, UpgradeState.WAIT, FINAL),
        counters="\n".join(_counters()),
        campaign=diagram(CAMPAIGN_TRANSITIONS, CampaignStatus.WAIT, CAMPAIGN_FINAL),
    )


if __name__ == "__main__":
    sys.stdout.write(page())
