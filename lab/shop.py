"""The small shop that the demo and the benchmark deploy to: its tables, and how to tell two states apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from psycopg import sql

from lab.cluster import Lab

ORDERS = 1000
CUSTOMERS = 50

_SEED = f"""
drop table if exists orders, customers cascade;
create table customers (id int primary key, name text not null);
insert into customers select i, 'customer ' || i from generate_series(1, {CUSTOMERS}) as i;
create table orders (id int primary key, customer int not null, total numeric(10, 2) not null);
insert into orders select i, 1 + i % {CUSTOMERS}, round(10 + i * 1.37, 2) from generate_series(1, {ORDERS}) as i;
"""


@dataclass(frozen=True)
class State:
    """What a member holds: a few figures for people, and a sum over every row and column."""

    tables: int
    orders: int | None
    total: str
    sum: str


def seed(lab: Lab) -> None:
    """Make the shop's tables anew, as the role that owns deployments."""
    leader = lab.wait_leader()
    with lab.connect(leader, user="release") as connection:
        connection.execute(_SEED)


def state(lab: Lab, node: str) -> State:
    """Read what a member holds.

    Raises:
        psycopg.Error: the member does not answer.
    """
    digest = hashlib.sha256()
    with lab.connect(node) as connection:
        tables = [
            str(row[0])
            for row in connection.execute(
                "select tablename from pg_tables where schemaname = 'public' order by tablename"
            ).fetchall()
        ]
        for table in tables:
            columns = connection.execute(
                "select column_name, data_type from information_schema.columns "
                "where table_schema = 'public' and table_name = %s order by ordinal_position",
                (table,),
            ).fetchall()
            name = sql.Identifier(table)
            rows = connection.execute(sql.SQL("select t::text from {} as t order by 1").format(name)).fetchall()
            digest.update(repr((table, columns, rows)).encode())
        orders, total = None, "-"
        if "orders" in tables:
            found = connection.execute("select count(*), coalesce(sum(total), 0)::text from orders").fetchone()
            orders, total = found if found else (None, "-")
    return State(len(tables), orders, total, digest.hexdigest()[:16])
