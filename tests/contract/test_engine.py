"""What both engines promise to every room: the same SQL text, the same answers."""

import asyncpg
import pytest

from openiodm.storage.engine import Database, InsertMany, UniqueViolation, UpdateMany
from openiodm.storage.postgres import PostgresDatabase

PRODUCTS = InsertMany("product", {"device_type": "text", "model": "text", "manufacturer_name": "text"})
RENAME = UpdateMany("product", {"id": "bigint", "model": "text"}, {"model": "text"})


async def test_rows_inserted_by_the_hundred_are_found_by_a_list_of_ids(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.insert_many(PRODUCTS, [("t", f"m{i}", "x") for i in range(300)])
    rows = await database.fetch("SELECT model FROM product WHERE id = ANY($1::bigint[]) ORDER BY id", [1, 3, 5000])
    assert [row["model"] for row in rows] == ["m0", "m2"]


async def test_update_many_is_a_compare_and_set_and_tells_how_many_matched(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.insert_many(PRODUCTS, [("t", "a", "x"), ("t", "b", "x")])
        touched = await tx.update_many(RENAME, [(1, "a", "a2"), (2, "not b", "b2")])
    assert touched == 1
    assert [r[0] for r in await database.fetch("SELECT model FROM product ORDER BY id")] == ["a2", "b"]


async def test_a_raised_savepoint_undoes_only_itself(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.insert_many(PRODUCTS, [("t", "kept", "x")])
        with pytest.raises(UniqueViolation):
            async with tx.savepoint():
                await tx.execute("INSERT INTO product (device_type, model, manufacturer_name) VALUES ('u','v','w')")
                await tx.insert_many(PRODUCTS, [("t", "kept", "x")])
    assert [r[0] for r in await database.fetch("SELECT model FROM product")] == ["kept"]


async def test_a_raised_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as tx:
            await tx.insert_many(PRODUCTS, [("t", "m", "x")])
            raise ZeroDivisionError
    assert await database.fetchval("SELECT count(*) FROM product") == 0


async def test_a_snapshot_does_not_see_what_is_committed_after_it_began(database: Database) -> None:
    async with database.snapshot() as before:
        assert await before.fetchval("SELECT count(*) FROM product") == 0
        async with database.transaction() as tx:
            await tx.insert_many(PRODUCTS, [("t", "m", "x")])
        assert await before.fetchval("SELECT count(*) FROM product") == 0
    assert await database.fetchval("SELECT count(*) FROM product") == 1


async def test_random_ids_are_made_by_the_database(database: Database) -> None:
    rows = await database.fetch("SELECT random_id() AS a, random_id() AS b")
    a, b = rows[0]["a"], rows[0]["b"]
    assert len(a) == len(b) == 32
    assert a != b


ASK = "SELECT p.id, c.campaign_id FROM product p LEFT JOIN campaign_change c ON c.id = p.id WHERE p.model = $1"


async def plan_of(database: PostgresDatabase) -> str:
    """The plan that the session keeps for `ASK`, which it has executed last."""
    name = await database.fetchval("SELECT name FROM pg_prepared_statements WHERE statement = $1", ASK)
    return "\n".join(row[0] for row in await database.fetch(f"EXPLAIN EXECUTE \"{name}\" ('m')"))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_plan_of_an_empty_table_is_not_kept_when_the_table_has_grown(database_url: str) -> None:
    """Otherwise a first large task has every poll read all of its upgrades, until autovacuum has come by."""
    admin = await asyncpg.connect(database_url)
    await admin.execute("ALTER TABLE campaign_change SET (autovacuum_enabled = off)")
    await admin.execute("VACUUM ANALYZE campaign_change")  # from then on it is known to be empty
    await admin.execute(f"ALTER DATABASE {database_url.partition('?')[0].rpartition('/')[2]} "
                        "SET plan_cache_mode = force_generic_plan")  # fmt: skip
    kept = await PostgresDatabase.open(database_url, replan_s=3600)
    anew = await PostgresDatabase.open(database_url, replan_s=0)
    for database in (kept, anew):
        await database.fetch(ASK, "m")
        assert "Index Cond: (id = p.id)" not in await plan_of(database)
    await admin.execute("INSERT INTO campaign_change (campaign_id) SELECT i FROM generate_series(1, 20000) i")
    assert "Index Cond: (id = p.id)" not in await plan_of(kept)  # what PostgreSQL does by itself
    assert "Index Cond: (id = p.id)" in await plan_of(anew)
    for opened in (kept, anew, admin):
        await opened.close()
