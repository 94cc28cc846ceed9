"""Login, tokens, gateway tokens and flow control, on both engines, through the contract's own routes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from openiodm.access.flow import MemoryFlow
from openiodm.access.model import ApplicationKey, Product, TokenLives, hash_secret
from openiodm.access.ports import FlowControl
from openiodm.clock import Millis
from openiodm.errors import Reason, Refusal
from openiodm.northbound.compat.credentials import CREDENTIALS
from openiodm.northbound.compat.devices import DEVICES
from openiodm.storage.access import SharedFlow
from openiodm.storage.engine import Database
from tests.conftest import ManualClock
from tests.support.compat_server import LIVES, MovedClock, Server, no, serving

LOGIN = "/iocm/app/sec/v1.1.0/login"
REFRESH = "/iocm/app/sec/v1.1.0/refreshToken"
LOGOUT = "/iocm/app/sec/v1.1.0/logout"
SOME_PAGE = {"pageNo": "0"}
DENIED = (403, "1010005")
THROTTLED = (403, "1010009")


@pytest.fixture
async def server(database: Database, clock: MovedClock) -> AsyncIterator[Server]:
    async with serving(database, clock) as running:
        yield running


async def lists_devices(server: Server, app_key: str, token: str) -> int:
    async with server.client(app_key=app_key, Authorization=f"Bearer {token}") as client:
        return (await client.get(DEVICES, params=SOME_PAGE)).status_code


async def test_login_takes_a_form_and_answers_the_five_members(server: Server) -> None:
    credentials = await server.access.create_application("shop")
    async with server.client() as client:
        answer = await client.post(LOGIN, data={"appId": credentials.app_id, "secret": credentials.secret})
    tokens = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert set(tokens) == {"accessToken", "refreshToken", "tokenType", "expiresIn", "scope"}
    assert (tokens["tokenType"], tokens["expiresIn"], tokens["scope"]) == ("Bearer", 3600, "default")
    assert await lists_devices(server, credentials.app_id, tokens["accessToken"]) == 200


async def test_login_takes_json_too(server: Server) -> None:
    credentials = await server.access.create_application("shop")
    async with server.client() as client:
        answer = await client.post(LOGIN, json={"appId": credentials.app_id, "secret": credentials.secret})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "102202")),
        ({"appId": "a"}, (400, "102202")),
        ({"appId": "a", "secret": ""}, (400, "102202")),
        ({"appId": "a", "secret": "b"}, (401, "100208")),
    ],
)
async def test_login_without_the_right_secret_is_refused(
    server: Server, body: dict[str, str], expected: tuple[int, str]
) -> None:
    async with server.client() as client:
        assert no(await client.post(LOGIN, data=body)) == expected
        assert no(await client.post(LOGIN, json=body)) == expected


@pytest.mark.parametrize("raw", [b"{", b"appId=a&appId=b&secret=c", b"\xff", b"x" * 10_000, b'{"appId": 5}'])
async def test_a_login_that_is_neither_form_nor_json_is_bad_input(server: Server, raw: bytes) -> None:
    async with server.client() as client:
        assert no(await client.post(LOGIN, content=raw)) in {(400, "50400"), (400, "102202")}


async def test_neither_secret_nor_token_is_stored(server: Server, database: Database) -> None:
    credentials = await server.access.create_application("shop")
    login = await server.access.login(credentials.app_id, credentials.secret)
    assert await database.fetchval("SELECT secret_hash FROM application") == hash_secret(credentials.secret)
    hashes = {row[0] for row in await database.fetch("SELECT token_hash FROM access_token")}
    assert hashes == {hash_secret(login.access_token), hash_secret(login.refresh_token)}


async def test_the_newest_access_token_wins(server: Server) -> None:
    app = await server.application()
    assert (await app.http.get(DEVICES, params=SOME_PAGE)).status_code == 200
    newer = await server.access.login(app.app_id, app.secret)
    assert no(await app.http.get(DEVICES, params=SOME_PAGE)) == DENIED
    assert await lists_devices(server, app.app_id, newer.access_token) == 200


async def test_of_parallel_logins_exactly_one_token_stays(server: Server) -> None:
    app = await server.application()
    logins = await asyncio.gather(*(server.access.login(app.app_id, app.secret) for _ in range(8)))
    statuses = [await lists_devices(server, app.app_id, login.access_token) for login in logins]
    assert sorted(statuses) == [200] + [403] * 7


async def test_a_replaced_token_lives_for_its_grace(database: Database, clock: MovedClock) -> None:
    lives = TokenLives(LIVES.life, LIVES.skew, Millis(5_000), LIVES.refresh)
    async with serving(database, clock, lives=lives) as server:
        app = await server.application()
        await server.access.login(app.app_id, app.secret)
        clock.advance(4_999)
        assert (await app.http.get(DEVICES, params=SOME_PAGE)).status_code == 200
        clock.advance(1)
        assert no(await app.http.get(DEVICES, params=SOME_PAGE)) == DENIED


async def test_a_token_is_accepted_for_the_skew_after_its_told_life(server: Server, clock: MovedClock) -> None:
    app = await server.application()
    clock.advance(LIVES.life + LIVES.skew - 1)
    assert (await app.http.get(DEVICES, params=SOME_PAGE)).status_code == 200
    clock.advance(1)
    assert no(await app.http.get(DEVICES, params=SOME_PAGE)) == DENIED


async def test_a_refresh_token_is_good_once(server: Server) -> None:
    app = await server.application()
    login = await server.access.login(app.app_id, app.secret)
    body = {"appId": app.app_id, "secret": app.secret, "refreshToken": login.refresh_token}
    async with server.client() as client:
        first = await client.post(REFRESH, json=body)
        assert first.status_code == 200
        assert no(await client.post(REFRESH, json=body)) == (401, "100208")
        body["refreshToken"] = first.json()["refreshToken"]
        assert (await client.post(REFRESH, json=body)).status_code == 200
        del body["refreshToken"]
        assert no(await client.post(REFRESH, json=body)) == (400, "102202")
        assert no(await client.post(REFRESH, content=b"[]")) == (400, "50400")
    assert await lists_devices(server, app.app_id, login.access_token) == 403


async def test_a_refresh_token_of_another_application_or_past_its_life_is_refused(
    server: Server, clock: MovedClock
) -> None:
    mine, other = await server.application(), await server.application()
    login = await server.access.login(mine.app_id, mine.secret)
    with pytest.raises(Refusal) as refused:
        await server.access.refresh(other.app_id, other.secret, login.refresh_token)
    assert refused.value.reason is Reason.CREDENTIALS_WRONG
    clock.advance(LIVES.refresh)
    with pytest.raises(Refusal):
        await server.access.refresh(mine.app_id, mine.secret, login.refresh_token)


async def test_logout_ends_both_tokens_and_a_repeat_is_answered_alike(server: Server) -> None:
    app = await server.application()
    login = await server.access.login(app.app_id, app.secret)
    async with server.client() as client:
        for _ in range(2):
            assert (await client.post(LOGOUT, json={"accessToken": login.access_token})).status_code == 204
        assert no(await client.post(LOGOUT, json={})) == (400, "102202")
    assert await lists_devices(server, app.app_id, login.access_token) == 403
    with pytest.raises(Refusal):
        await server.access.refresh(app.app_id, app.secret, login.refresh_token)


async def test_headers_must_be_there_and_agree(server: Server) -> None:
    mine, other = await server.application(), await server.application()
    token = mine.http.headers["Authorization"].split()[1]
    for headers in (
        {},
        {"app_key": mine.app_id},
        {"Authorization": f"Bearer {token}"},
        {"app_key": other.app_id, "Authorization": f"Bearer {token}"},
        {"app_key": mine.app_id, "Authorization": f"Basic {token}"},
        {"app_key": mine.app_id, "Authorization": "Bearer x"},
        {"app_key": mine.app_id, "Authorization": ""},
    ):
        async with server.client(**headers) as client:
            assert no(await client.get(DEVICES, params=SOME_PAGE)) == DENIED


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "Bearer  {}", "Bearer{}", " Bearer {} "])
async def test_the_authorization_header_is_read_as_clients_send_it(server: Server, form: str) -> None:
    app = await server.application()
    token = app.http.headers["Authorization"].split()[1]
    async with server.client(APP_KEY=app.app_id, AUTHORIZATION=form.format(token)) as client:
        assert (await client.get(DEVICES, params=SOME_PAGE)).status_code == 200


async def test_a_frozen_application_is_refused_everywhere_until_thawed(server: Server) -> None:
    app = await server.application()
    gateway = (await server.access.create_gateway_token(app.actor, "line 1", Product("t", "m", "f")))[1]
    await server.access.set_frozen(app.app_id, frozen=True)
    assert no(await app.http.get(DEVICES, params=SOME_PAGE)) == DENIED
    async with server.client() as client:
        body = {"appId": app.app_id, "secret": app.secret}
        assert no(await client.post(LOGIN, data=body)) == (400, "100247")
        assert no(await client.post(LOGIN, data=body | {"secret": "x"})) == (401, "100208")
    assert await server.access_queries.gateway(gateway) is None
    await server.access.set_frozen(app.app_id, frozen=False)
    assert no(await app.http.get(DEVICES, params=SOME_PAGE)) == DENIED  # its sessions ended with the freeze
    assert await server.access_queries.gateway(gateway) is not None
    await server.log_in(app)
    assert (await app.http.get(DEVICES, params=SOME_PAGE)).status_code == 200


async def test_a_frozen_application_can_neither_refresh_before_nor_after_it_is_thawed(server: Server) -> None:
    app = await server.application()
    login = await server.access.login(app.app_id, app.secret)
    body = {"appId": app.app_id, "secret": app.secret, "refreshToken": login.refresh_token}
    await server.access.set_frozen(app.app_id, frozen=True)
    async with server.client() as client:
        assert no(await client.post(REFRESH, json=body)) == (400, "100247")
        await server.access.set_frozen(app.app_id, frozen=False)
        assert no(await client.post(REFRESH, json=body)) == (401, "100208")


async def test_section_1_4_too_many_wrong_secrets_are_throttled(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock, wrong_secrets=3) as server, server.client() as client:
        app, other = await server.application(), await server.application()
        own, guess = ({"appId": app.app_id, "secret": secret} for secret in (app.secret, "guess"))
        refresh = {**guess, "refreshToken": "guess"}
        assert no(await client.post(LOGIN, data=guess)) == (401, "100208")
        assert no(await client.post(LOGIN, json=guess)) == (401, "100208")
        assert no(await client.post(REFRESH, json=refresh)) == (401, "100208")
        assert no(await client.post(LOGIN, data=guess)) == THROTTLED
        assert no(await client.post(LOGIN, data=own)) == THROTTLED
        assert no(await client.post(REFRESH, json=refresh)) == THROTTLED
        assert (await app.http.get(DEVICES, params=SOME_PAGE)).status_code == 200  # its session goes on
        assert no(await client.post(LOGIN, data={"appId": app.app_id})) == (400, "102202")
        clock.advance(20_000)
        assert (await client.post(LOGIN, data=own)).status_code == 200
        for _ in range(5):  # now it is known there
            await client.post(LOGIN, data={"appId": other.app_id, "secret": "guess"})
        assert (await client.post(LOGIN, data=own)).status_code == 200


async def test_a_rotated_secret_ends_every_session(server: Server) -> None:
    app = await server.application()
    rotated = await server.access.rotate_secret(app.app_id)
    assert no(await app.http.get(DEVICES, params=SOME_PAGE)) == DENIED
    with pytest.raises(Refusal):
        await server.access.login(app.app_id, app.secret)
    await server.access.login(app.app_id, rotated.secret)


async def test_tokens_that_are_over_are_removed(server: Server, clock: MovedClock, database: Database) -> None:
    await server.application()
    clock.advance(LIVES.life + LIVES.skew)
    assert await server.access.remove_expired_tokens() == 1
    clock.advance(LIVES.refresh)
    assert await server.access.remove_expired_tokens() == 1
    assert await database.fetchval("SELECT count(*) FROM access_token") == 0


async def test_a_gateway_token_carries_its_product_until_it_is_revoked(server: Server) -> None:
    app, other = await server.application(), await server.application()
    product = Product("Meter", "M1", "Acme")
    token, text = await server.access.create_gateway_token(app.actor, "line 1", product)
    gateway = await server.access_queries.gateway(text)
    assert gateway is not None
    assert (gateway.application.app_id, gateway.token, gateway.product) == (app.app_id, token.key, product)
    assert [t.name for t in await server.access_queries.gateway_tokens(app.actor)] == ["line 1"]
    assert list(await server.access_queries.gateway_tokens(other.actor)) == []
    with pytest.raises(Refusal):
        await server.access.revoke_gateway_token(other.actor, token.key)
    await server.access.revoke_gateway_token(app.actor, token.key)
    assert await server.access_queries.gateway(text) is None
    with pytest.raises(Refusal):
        await server.access.revoke_gateway_token(app.actor, token.key)


async def test_gateway_tokens_can_be_disallowed(server: Server) -> None:
    app = await server.application()
    _, text = await server.access.create_gateway_token(app.actor, "line 1", Product("", "", ""))
    await server.access.set_device_tokens(app.actor, gateway=False)
    assert await server.access_queries.gateway(text) is None
    application = await server.access_queries.application(app.app_id)
    assert (application.target_tokens, application.gateway_tokens) == (True, False)


async def test_applications_are_listed_and_unknown_ones_refused(server: Server) -> None:
    for name in ("a", "b"):
        await server.access.create_application(name)
    assert [a.name for a in await server.access_queries.applications()] == ["a", "b"]
    with pytest.raises(Refusal) as refused:
        await server.access.rotate_secret("nobody")
    assert refused.value.reason is Reason.APPLICATION_UNKNOWN
    for name in ("", "x" * 257):
        with pytest.raises(Refusal):
            await server.access.create_application(name)


def flow_of(database: Database, clock: MovedClock, per_minute: int) -> FlowControl:
    """What a server on that engine uses."""
    make = SharedFlow if database.engine == "postgresql" else MemoryFlow
    if make is SharedFlow:
        return SharedFlow(database, clock, per_minute)
    return MemoryFlow(clock, per_minute)


async def test_the_hundred_and_first_call_of_a_minute_is_refused(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock, flow=flow_of(database, clock, 100)) as server:
        app, other = await server.application(), await server.application()
        answers = [await app.http.get(f"{CREDENTIALS}/none") for _ in range(100)]
        assert {a.status_code for a in answers} == {404}
        assert no(await app.http.get(f"{CREDENTIALS}/none")) == THROTTLED
        assert no(await other.http.get(f"{CREDENTIALS}/none")) == (404, "100403")
        clock.advance(599)
        assert no(await app.http.get(f"{CREDENTIALS}/none")) == THROTTLED
        clock.advance(1)
        assert no(await app.http.get(f"{CREDENTIALS}/none")) == (404, "100403")
        assert no(await app.http.get(f"{CREDENTIALS}/none")) == THROTTLED


async def test_a_full_bucket_comes_back_after_a_minute_and_holds_no_more(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock) as server:
        key = (await server.application()).actor.application
        flow = flow_of(database, clock, 7)  # 60 s are no multiple of it
        for _ in range(3):
            for _ in range(7):
                await flow.admit(key)
            with pytest.raises(Refusal) as refused:
                await flow.admit(key)
            assert refused.value.reason is Reason.THROTTLED
            clock.advance(180_000)


async def admitted(flow: FlowControl, application: ApplicationKey, calls: int) -> int:
    """How many of so many calls in a row."""
    count = 0
    for _ in range(calls):
        try:
            await flow.admit(application)
        except Refusal as refused:
            assert refused.reason is Reason.THROTTLED
        else:
            count += 1
    return count


async def test_a_clock_that_was_far_ahead_shuts_nobody_out_when_it_is_set_right(
    database: Database, clock: MovedClock
) -> None:
    async with serving(database, clock) as server:
        key = (await server.application()).actor.application
        flow = flow_of(database, clock, 7)
        assert await admitted(flow, key, 8) == 7
        clock.advance(-3_600_000)
        assert await admitted(flow, key, 8) == 7  # a full bucket, and no more than that
        clock.advance(60_000)
        assert await admitted(flow, key, 8) == 7


@pytest.mark.parametrize("back", [1_000, 59_999, 60_000, 60_001])
async def test_a_clock_that_is_set_back_a_little_refuses_for_no_longer_than_that_and_a_call(
    database: Database, clock: MovedClock, back: int
) -> None:
    async with serving(database, clock) as server:
        key = (await server.application()).actor.application
        flow = flow_of(database, clock, 10)
        assert await admitted(flow, key, 11) == 10
        clock.advance(-back)
        assert await admitted(flow, key, 11) == (10 if back > 60_000 else 0)
        clock.advance(60_000)  # the most that is remembered of a refusal
        await admitted(flow, key, 11)
        clock.advance(6_000)
        assert await admitted(flow, key, 1) == 1


async def test_flow_control_refuses_no_one_when_off_and_counts_no_login(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock, flow=flow_of(database, clock, 0)) as server:
        app = await server.application()
        assert {(await app.http.get(f"{CREDENTIALS}/x")).status_code for _ in range(250)} == {404}
    async with serving(database, clock, flow=flow_of(database, clock, 1)) as server, server.client() as client:
        app = await server.application()
        for _ in range(5):
            answer = await client.post(LOGIN, data={"appId": app.app_id, "secret": app.secret})
            assert answer.status_code == 200


async def test_credentials_come_before_flow_control_and_that_before_the_body(
    database: Database, clock: MovedClock
) -> None:
    async with serving(database, clock, flow=flow_of(database, clock, 1)) as server:
        app = await server.application()
        assert no(await app.http.post(CREDENTIALS, content=b"{")) == (400, "100007")
        assert no(await app.http.post(CREDENTIALS, content=b"{")) == THROTTLED
        async with server.client(app_key=app.app_id) as client:
            assert no(await client.post(CREDENTIALS, content=b"{")) == DENIED


async def test_servers_on_one_postgresql_share_the_bucket(database: Database, clock: MovedClock) -> None:
    if database.engine != "postgresql":
        pytest.skip("a SQLite file has one server")
    async with serving(database, clock) as server:
        key = (await server.application()).actor.application
        flows = [SharedFlow(database, clock, 100) for _ in range(3)]
        outcomes = await asyncio.gather(*(admitted(flows[i % 3], key, 1) for i in range(300)))
        assert sum(outcomes) == 100


async def test_a_server_whose_clock_is_far_ahead_shuts_nobody_out_of_the_others(
    database: Database, clock: MovedClock
) -> None:
    if database.engine != "postgresql":
        pytest.skip("a SQLite file has one server")
    async with serving(database, clock) as server:
        key = (await server.application()).actor.application
        ahead = ManualClock(clock.now() + 3_600_000)
        right, wrong = SharedFlow(database, clock, 100), SharedFlow(database, ahead, 100)
        assert await admitted(wrong, key, 101) == 100
        assert await admitted(right, key, 101) == 100
        ahead.advance(-3_600_000)  # it has compared its clock with the database's
        assert await admitted(wrong, key, 1) == 0
        clock.advance(6_000)
        ahead.advance(6_000)
        assert await admitted(right, key, 5) + await admitted(wrong, key, 6) == 10


async def test_a_refusing_server_asks_the_database_again_when_the_next_call_is_due(
    database: Database, clock: MovedClock
) -> None:
    if database.engine != "postgresql":
        pytest.skip("only a shared bucket is remembered")

    class Counted:
        statements = 0

        def __getattr__(self, name: str) -> object:
            Counted.statements += 1
            return getattr(database, name)

    async with serving(database, clock) as server:
        key = (await server.application()).actor.application
        flow = SharedFlow(Counted(), clock, 2)  # type: ignore[arg-type]  # a counting stand-in
        for _ in range(2):
            await flow.admit(key)
        before = Counted.statements
        for _ in range(50):
            with pytest.raises(Refusal):
                await flow.admit(key)
        assert Counted.statements - before == 2
        clock.advance(30_000)
        await flow.admit(key)


async def test_unknown_paths_and_methods_are_answered_in_the_contracts_words(server: Server) -> None:
    app = await server.application()
    assert no(await app.http.get("/iocm/app/nothing")) == (404, "120015")
    wrong = await app.http.delete(LOGIN)
    assert no(wrong) == (405, "120015")
    assert wrong.headers["allow"] == "POST"
