"""The one node with a database: answers for the rest, and keeps their call records."""

import os
import sqlite3
from contextlib import closing
from typing import Any

from clusternode import routes

DATABASE = os.environ.get("CDR_DATABASE", "cdr.sqlite")


def connect() -> sqlite3.Connection:
    return sqlite3.connect(DATABASE, timeout=5.0)


@routes.on_start
def create(agent: routes.AgentContext) -> None:
    """Before the agent joins, so nobody can ask too early."""
    with closing(connect()) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS cdr (node, caller, seconds)")


@routes.message("cdr", thread=True)
def store(message: routes.IncomingMessage) -> None:
    """Store one record. The sender's result is 200 only when it is committed."""
    record = message.json()
    with closing(connect()) as database, database:
        values = (message.origin, record["caller"], record["seconds"])
        database.execute("INSERT INTO cdr VALUES (?, ?, ?)", values)


@routes.request("cdr.total", thread=True, time_limit=3.0)
def total(request: routes.IncomingRequest) -> dict[str, Any]:
    """Say how long somebody has talked. A thread may block; the agent does not notice."""
    with closing(connect()) as database:
        query = "SELECT count(*), coalesce(sum(seconds), 0) FROM cdr WHERE caller = ?"
        calls, seconds = database.execute(query, (request.text,)).fetchone()
    return {"caller": request.text, "calls": calls, "seconds": seconds}
