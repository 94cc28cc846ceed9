"""How a campaign ends: used wherever devices of it may have ended (reports, sweeps, clocks, expansion).

The result of a device is told to subscribers when it is decided for good (contract section 6.2). Whether a failure is,
is known when it happens (`result_owed`): while a round of retries may still come, the result is owed, which the row
remembers. A round that retries the device cancels the debt; a campaign that ends or is stopped, or whose window ends,
pays what is left.
"""

from openiodm.campaigns.model import CampaignKey, Hold
from openiodm.campaigns.ports import CampaignDesk, Work
from openiodm.campaigns.rollout import Conclusion, conclude, may_retry
from openiodm.campaigns.states import CAMPAIGN_FINAL, CampaignEvent, CampaignStatus, next_campaign_status
from openiodm.clock import Instant

EXPAND, RETRY, SWEEP = "campaign.expand", "campaign.retry", "campaign.sweep"
WINDOW_END, ONLINE, SETTLE = "campaign.window_end", "campaign.online", "campaign.settle"
JOBS = (EXPAND, RETRY, SWEEP, WINDOW_END, ONLINE, SETTLE)

_EVENT = {
    Conclusion.SUCCEEDED: CampaignEvent.SUCCEEDED,
    Conclusion.FAILED: CampaignEvent.FAILED,
    Conclusion.STOPPED: CampaignEvent.STOPPED,
}


async def end_if_complete(work: Work, campaign: CampaignKey, now: Instant) -> None:
    """Ends the campaign, or begins its next round, when no device is left to end and the server has no work on it."""
    desk = (await work.campaigns.lock([campaign]))[campaign]
    if desk.status in CAMPAIGN_FINAL or desk.work != "idle":
        return
    conclusion = conclude(
        desk.counters, round_=desk.round, retry_times=desk.retry_times, window_end=desk.window_end, now=now
    )
    if conclusion is None:
        return
    if conclusion is Conclusion.RETRY:
        await work.campaigns.begin_round(campaign, reopened=False)
        await begin_round_jobs(work, desk, now)
        return
    status = next_campaign_status(desk.status, _EVENT[conclusion])
    assert status is not None, (desk.status, conclusion)
    await work.campaigns.set_status(campaign, status, stopped_at=now)
    await work.campaigns.set_open(campaign, False)
    for kind in (ONLINE, WINDOW_END):
        await work.jobs.remove(kind, campaign)
    if conclusion is Conclusion.FAILED and desk.retry_times:
        await work.jobs.put(SETTLE, campaign, now)


def result_owed(desk: CampaignDesk, now: Instant) -> bool:
    """May a device that fails now still be retried, so that its result is not the last word?"""
    return desk.status is not CampaignStatus.STOP and may_retry(
        round_=desk.round, retry_times=desk.retry_times, window_end=desk.window_end, now=now
    )


async def settle(work: Work, campaign: CampaignKey, after: int, limit: int, now: Instant) -> int | None:
    """Tells up to `limit` results that are owed, beyond that ordinal; the last ordinal, or None when none is left."""
    owed = await work.campaigns.settle(campaign, after, limit)
    if owed is None:
        return None
    last, upgrades = owed
    await work.notices.settled(campaign, upgrades, now)
    return last


async def begin_round_jobs(work: Work, desk: CampaignDesk, now: Instant) -> None:
    """A new round resets the failed, and gives every waiting device the whole online clock again (in the window)."""
    await work.jobs.put(RETRY, desk.key, now)
    if desk.hold is not Hold.ALL:
        await begin_online_clock(work, desk, now)


async def begin_online_clock(work: Work, desk: CampaignDesk, now: Instant) -> None:
    """From now, or from the beginning of the window."""
    begin = now if desk.window_start is None else max(now, desk.window_start)
    await work.jobs.put(ONLINE, desk.key, Instant(begin + desk.clocks.online))
