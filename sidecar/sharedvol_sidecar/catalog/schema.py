"""The tables of the catalog, which are the same on SQLite, MariaDB and MySQL.

``sharedvol_collected`` has a row for each collected file, ``sharedvol_catalog`` one row with the version of the schema.
A later release reads that row and migrates. An older release refuses a version that it does not know.

The indexes in `ADDED` are newer than the first release, which works with a catalog that has them. They change no
result, so a catalog without them has the same version. Reading it by kind or container takes longer.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable

from sharedvol_sidecar.errors import CatalogError

VERSION = 1
"""The version of the schema that this release writes."""

WHEN: Final = "sharedvol_collected_when"
WHO: Final = "sharedvol_collected_who"
KIND: Final = "sharedvol_collected_kind"
CONTAINER: Final = "sharedvol_collected_container"
ADDED: Final = (CONTAINER, KIND)
"""Indexes that a catalog of the first release lacks."""

_DUPLICATE_INDEX = 1061  # ER_DUP_KEYNAME, because MySQL has no CREATE INDEX IF NOT EXISTS
_NAME = 765  # characters of an escaped name: three for each of its 255 bytes
_PREFIX = {"kind": 190, "container": 190}  # for InnoDB, where an index key has at most 3,072 bytes

_metadata = sa.MetaData()


def _ascii(length: int) -> Any:
    return sa.CHAR(length).with_variant(mysql.CHAR(length, charset="ascii", collation="ascii_bin"), "mysql")


# Names are compared by bytes, because two names that differ only in case are two files.
_OPTIONS: Any = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

collected = sa.Table(
    "sharedvol_collected",
    _metadata,
    sa.Column("key", _ascii(32), primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("kind", sa.String(_NAME), nullable=False),
    sa.Column("container", sa.String(_NAME), nullable=False),
    sa.Column("original", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", _ascii(64)),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("collected_at", sa.BigInteger, nullable=False),
    sa.Column("encoding", sa.String(16)),
    sa.Column("original_size", sa.BigInteger),
    # The order of the pages, and the filters of the commands.
    sa.Index(WHEN, "collected_at", "key"),
    sa.Index(WHO, "kind", "container", "collected_at", mysql_length=_PREFIX),
    # Without a prefix, because MariaDB sorts all rows if an index has only the beginning of a column.
    sa.Index(KIND, "kind", "collected_at"),
    sa.Index(CONTAINER, "container", "collected_at"),
    **_OPTIONS,
)

_version = sa.Table(
    "sharedvol_catalog",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    **_OPTIONS,
)


def check(connection: sa.Connection, label: str) -> bool:
    """Return whether the tables exist.

    Raises:
        CatalogError: they are of a newer version.
    """
    if not sa.inspect(connection).has_table(_version.name):
        return False
    version = connection.execute(sa.select(_version.c.version)).scalar()
    if version is None:
        return False
    if version > VERSION:
        raise CatalogError(
            f"catalog {label} has schema {version}, of a newer version, and this one knows {VERSION}: "
            "upgrade this sidecar, or give it a catalog of its own"
        )
    return True


def create(connection: sa.Connection) -> None:
    """Create missing tables and indexes. Several processes may do so at once.

    The version is written last, so if it exists, everything else does.
    """
    connection.execute(CreateTable(collected, if_not_exists=True))
    for index in _sorted_indexes():
        if index.name not in ADDED:
            _create_index(connection, index)
    for name in ADDED:
        with contextlib.suppress(sa.exc.DBAPIError):  # for example, InnoDB's small pages hold only short keys
            add_index(connection, name)
    connection.execute(CreateTable(_version, if_not_exists=True))
    statement = "INSERT OR IGNORE" if connection.dialect.name == "sqlite" else "INSERT IGNORE"
    connection.exec_driver_sql(f"{statement} INTO {_version.name} (id, version) VALUES (1, {VERSION})")


def index_names(connection: sa.Connection) -> frozenset[str]:
    """Return the names of the indexes that the table of rows has."""
    return frozenset(str(index["name"]) for index in sa.inspect(connection).get_indexes(collected.name))


def add_index(connection: sa.Connection, name: str) -> None:
    """Create the index ``name`` if it is missing. On MariaDB and MySQL, other processes can write meanwhile.

    SQLite locks the catalog for writers meanwhile: about 0.7 seconds for 1,000,000 rows.

    Raises:
        sqlalchemy.exc.DBAPIError: the index cannot be created. Nothing was changed.
    """
    (index,) = (index for index in collected.indexes if index.name == name)
    _create_index(connection, index)


def _sorted_indexes() -> list[sa.Index]:
    return sorted(collected.indexes, key=lambda index: str(index.name))


def _create_index(connection: sa.Connection, index: sa.Index) -> None:
    if connection.dialect.name == "sqlite":
        connection.execute(CreateIndex(index, if_not_exists=True))
        return
    statement = str(CreateIndex(index).compile(dialect=connection.dialect))
    try:
        # A server that cannot do it without locking the table refuses the statement.
        connection.exec_driver_sql(f"{statement} ALGORITHM=INPLACE LOCK=NONE")
    except sa.exc.DBAPIError as error:
        if error.orig is None or error.orig.args[:1] != (_DUPLICATE_INDEX,):
            raise


class Statements:
    """The statements of a batch, in the driver's own style, because SQLAlchemy's executemany doubles the cost."""

    def __init__(self, dialect: Any) -> None:
        sqlite = dialect.name == "sqlite"
        mark = "?" if sqlite else "%s"
        quote = dialect.identifier_preparer.quote
        names = [quote(column.name) for column in collected.columns]
        insert = f"INSERT INTO {collected.name} ({', '.join(names)}) VALUES ({', '.join(mark for _ in names)})"
        if sqlite:
            updates = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
            self.upsert = f"{insert} ON CONFLICT ({names[0]}) DO UPDATE SET {updates}"
            self.insert_new = f"{insert} ON CONFLICT ({names[0]}) DO NOTHING"
        else:
            # VALUES() instead of an alias of the row, which MariaDB does not have. PyMySQL sends many rows at once only
            # if ON DUPLICATE follows directly. INSERT IGNORE would ignore other errors as well.
            updates = ", ".join(f"{name} = VALUES({name})" for name in names[1:])
            self.upsert = f"{insert} ON DUPLICATE KEY UPDATE {updates}"
            self.insert_new = f"{insert} ON DUPLICATE KEY UPDATE {names[0]} = {names[0]}"
        self.delete = f"DELETE FROM {collected.name} WHERE {names[0]} = {mark}"
        exact = " AND ".join(f"{quote(name)} = {mark}" for name in ("collected_at", "size", "mtime_ns"))
        self.delete_exact = f"{self.delete} AND {exact}"
        self.begin = "BEGIN IMMEDIATE" if sqlite else "START TRANSACTION"
