"""The splitter, the fast path, and many replicas that start at once beside one alone."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, at_least, at_most, note, say
from bench.together import together
from sharedvol import MigrationCoordinator
from sharedvol.migrations import split_script

# The servers are those that the tests start.
sys.path.append(str(Path(__file__).parents[1] / "tests"))

REPLICAS = 32
FILES = 50


def splitter(directory: Path, scale: float) -> Iterator[Figure]:
    """Splitting a script of ordinary migrations, and one four times as long."""
    lines = max(100, int(20_000 * scale))
    script = "".join(
        f"-- step {number}\n"
        f"INSERT INTO `t` (a, b, c) VALUES ({number}, 'it''s a \\'value\\'; with', \"x\"), (7, NULL, /* c */ 5-3);\n"
        f"ALTER TABLE x ADD COLUMN y{number} VARCHAR(20) NOT NULL DEFAULT '' COMMENT 'a;b';\n"
        for number in range(lines)
    )
    runs = [(_seconds_to_split(script), _seconds_to_split(script * 4)) for _ in range(3)]
    short, long = (statistics.median(column) for column in zip(*runs, strict=True))
    size = len(script) / 1e6
    speeds = [size / 5 / one for one, _ in runs]
    yield at_least(
        "splitter: times 5 MB/s", statistics.median(speeds), 1.0, f"{size / short:.1f} MB/s, {size:.1f} MB", speeds
    )
    ratios = [four / one / 4 for one, four in runs]
    detail = f"{long:.2f} s, {short:.2f} s"
    yield at_most("splitter, time for four times the text / 4", statistics.median(ratios), 1.3, detail, ratios)


def _seconds_to_split(script: str) -> float:
    begun = time.perf_counter()
    split_script(script)
    return time.perf_counter() - begun


def replicas(directory: Path, scale: float) -> Iterator[Figure]:
    """The fast path's round trips; and replicas that start together on pending files, beside one alone."""
    from support.installed import FLAVOURS, NotInstalled, programs
    from support.servers import Server

    files = _migrations(directory, max(2, int(FILES * scale)))
    count = max(2, int(REPLICAS * scale))
    for flavour in FLAVOURS:
        try:
            programs(flavour)
        except NotInstalled as error:
            say(str(error))
            continue
        with Server(flavour) as server:
            yield _fast_path(server, files)
            # Without TLS, for which the driver reads the machine's certificates anew at each connection (30 ms
            # of computing): with all replicas on this one machine's cores that would be most of what is measured.
            for option, what in (("&ssl_disabled=true", ""), ("", ", TLS")):
                _start(server, files, 1, option)
                rounds = 1 if what else 3
                runs = [(_start(server, files, 1, option), _start(server, files, count, option)) for _ in range(rounds)]
                alone, together = (statistics.median(column) for column in zip(*runs, strict=True))
                ratios = [many / one for one, many in runs]
                ratio = statistics.median(ratios)
                name = f"{flavour}{what}: {count} replicas on {len(os.listdir(files))} files / one"
                detail = f"{together:.2f} s, {alone:.2f} s"
                yield note(name, ratio, detail, ratios) if what else at_most(name, ratio, 1.3, detail, ratios)


def _fast_path(server: object, files: Path) -> Figure:
    from support.link import Link
    from support.servers import Server

    assert isinstance(server, Server)
    database = server.create_database()
    MigrationCoordinator(server.url(database), files).run()
    with Link(server) as link:
        status = MigrationCoordinator(link.url(database), files).run()
        assert status.fast_path
        trips = link.round_trips
    return at_most(f"{server.flavour}: fast path, round trips after the log-in", trips, 3, "the driver's own included")


def _migrations(directory: Path, count: int) -> Path:
    place = directory / "migrations"
    place.mkdir()
    for number in range(count):
        (place / f"{number:03}_table.sql").write_text(
            f"CREATE TABLE t{number} (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL, KEY (name));\n"
            f"INSERT INTO t{number} (name) VALUES ('a'), ('b'), ('c');\n"
            f"ALTER TABLE t{number} ADD COLUMN extra INT NOT NULL DEFAULT 0, ADD INDEX (extra);\n"
            f"UPDATE t{number} SET extra = id WHERE name <> 'b';\n"
        )
    return place


def _start(server: object, files: Path, count: int, option: str) -> float:
    """Seconds until all of ``count`` processes, released together on an empty schema, are ready."""
    from support.servers import Server

    assert isinstance(server, Server)
    url = server.url(server.create_database()) + option
    taken, codes = together(
        count, lambda _: 0 if MigrationCoordinator(url, files, lock_timeout=None).run().ready else 2
    )
    assert not any(codes), codes
    return taken
