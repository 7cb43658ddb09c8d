"""Every setting by every way, in order; and no password in anything that is said."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from click.testing import CliRunner
from support.sidecar.service_process import service, settled
from support.sidecar.volume import Volume, run_cli

from sharedvol_sidecar.cli import main
from sharedvol_sidecar.config.loading import load
from sharedvol_sidecar.config.secret import SECRET
from sharedvol_sidecar.config.settings import FIELDS, Settings, variable
from sharedvol_sidecar.errors import ConfigError

SPECIAL: dict[str, tuple[str, ...]] = {
    "from": ("/1", "/2", "/3", "/4"),
    "to": ("/1", "/2", "/3", "/4"),
    "template": ("1/{name}", "2/{name}", "3/{name}", "4/{name}"),
    "pattern": tuple(f"(?P<container>{number})" for number in "1234"),
    "workers": ("1", "2", "1", "2"),
    "owner": ("1", "2", "3", "4"),
    "file_mode": ("0601", "602", "0603", "604"),
    "directory_mode": ("0701", "702", "0703", "704"),
    "min_free": ("1K", "2K", "3K", "4K"),
    "rate": ("1K", "2K", "3K", "4K"),
    "keep": ("results=1d", "results=2d", "results=3d", "results=4d"),
    "listen": ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "off"),
    "catalog": ("sqlite:////1", "sqlite:////2", "mysql://u:p%40@h/d", "none"),
}


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIELDS:
        monkeypatch.delenv(variable(name), raising=False)
        monkeypatch.delenv(variable(name) + SECRET, raising=False)


def texts(name: str) -> tuple[str, ...]:
    """Four values as text, each unlike its neighbours."""
    if name in SPECIAL:
        return SPECIAL[name]
    kind = Settings.model_fields[name].annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return tuple(words[number % len(words)] for number in range(4))
    if kind is bool:
        return ("false", "true", "no", "on")
    if kind in (int, float):
        return ("1", "2", "3", "4")
    return ("a", "b", "c,d", "e")


def field(name: str) -> str:
    return "from_" if name == "from" else name


def loaded(name: str, flags: dict[str, Any], config: Path | None) -> Any:
    needed = {other: "/x" for other in ("from", "to") if other != name}
    return getattr(load({**needed, **flags}, config), field(name))


@pytest.mark.parametrize("name", FIELDS)
def test_flag_then_variable_then_secret_then_file_then_default(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_flag, by_variable, by_secret, by_file = texts(name)
    alone = [loaded(name, {name: text}, None) for text in (by_flag, by_variable, by_secret, by_file)]
    config, secret = tmp_path / "x.toml", tmp_path / "secret"
    config.write_text("")
    if not Settings.model_fields[field(name)].is_required():
        default = Settings.model_fields[field(name)].default
        assert loaded(name, {}, config) == default == loaded(name, {name: None}, None)
    config.write_text(f"{name} = {json.dumps(by_file)}\n")
    assert loaded(name, {}, config) == alone[3]
    secret.write_text(f"{by_secret}\n")
    monkeypatch.setenv(variable(name) + SECRET, str(secret))
    assert loaded(name, {}, config) == alone[2]
    monkeypatch.setenv(variable(name), by_variable)
    with pytest.raises(ConfigError, match="both set"):
        loaded(name, {}, config)
    monkeypatch.delenv(variable(name) + SECRET)
    assert loaded(name, {}, config) == alone[1]
    assert loaded(name, {name: by_flag}, config) == alone[0]
    assert alone[0] != alone[1] and alone[1] != alone[2] and alone[2] != alone[3]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("quiet = 1.5", 1.5),
        ("quiet = 1", 1.0),
        ("workers = 2", 2),
        ("digests = false", False),
        ('kinds = ["a", "b"]', ("a", "b")),
        ('kinds = "a, b"', ("a", "b")),
        ("follow = []", ()),
        ('follow = "none"', ()),
        ("rate = 4096", "4096"),
        ('file_mode = "0640"', "0640"),
        ('keep = ["results=1d", "logs=2d,3G"]', ("results=1d", "logs=2d,3G")),
        ('keep = "results=1d logs=2d,3G"', ("results=1d", "logs=2d,3G")),
    ],
)
def test_types_of_toml(tmp_path: Path, text: str, wanted: object) -> None:
    config = tmp_path / "x.toml"
    config.write_text(text)
    name = text.partition(" ")[0]
    found = loaded(name, {}, config)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("file_mode = 0o640", "in quotes"),
        ("file_mode = 640", "in quotes"),
        ("directory_mode = 0o750", "in quotes"),
        ('file_mode = "4755"', "three octal digits"),
        ("quiet = true", "give a number"),
        ("workers = true", "give a number"),
        ("workers = 1.5", "workers"),
        ("digests = 2", "digests"),
        ('digests = "perhaps"', "digests"),
        ("kinds = [1]", "kinds"),
        ("kinds = []", "give names of directories"),
        ("template = 5", "template"),
        ("catalog = 5", "catalog"),
        ("owner = 1000", "owner"),
        ('owner = "root"', "give numbers"),
        ("rate = true", "give a size"),
        ("rate = -1", "give a size"),
        ('keep = "results=soon"', "keep"),
        ('prune = "yes"', "prune"),
        ('listen = "nonsense"', "listen"),
        ("QUIET = 1", "there is no setting 'QUIET'"),
        ("quiet_ = 1", "there is no setting"),
        ("follow-interval = 1", "there is no setting"),
        ("[sidecar]\nquiet = 1", "there is no setting"),
        ("quiet = 2026-01-01", "quiet"),
        ("quiet = 1\nquiet = 2", "TOML"),
        ('pattern = "(?P<container>x{99999999999})"', "not a regular expression"),
    ],
)
def test_wrong_type_or_name_is_told_in_words(tmp_path: Path, text: str, word: str) -> None:
    config = tmp_path / "x.toml"
    config.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load({"from": "/x", "to": "/y"}, config)
    assert word in str(raised.value) and "\n" not in str(raised.value)


def test_every_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'from' is not set.*'to' is not set.*'quiet'"):
        load({"quiet": "x"}, None)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (None, "check that the secret is mounted"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff", "is not text"),
        (b"x" * 70_000, "more than"),
    ],
    ids=["missing", "empty", "newline", "binary", "large"],
)
def test_secret_that_cannot_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes | None, word: str
) -> None:
    secret = tmp_path / "secret"
    if raw is not None:
        secret.write_bytes(raw)
    monkeypatch.setenv("SHAREDVOL_CATALOG_FILE", str(secret))
    with pytest.raises(ConfigError, match=word):
        load({"from": "/x", "to": "/y"}, None)
    # A flag wins, and yet a secret that is named and not there is a mistake that somebody made.
    with pytest.raises(ConfigError, match=word):
        load({"from": "/x", "to": "/y", "catalog": "none"}, None)


SECRET_PARTS = ("hush", "s3cr3t")
URLS = [
    "mysql://user:hush@127.0.0.1:1/db",
    "mysql://user:hush%40s3cr3t@127.0.0.1:1/db",
    "mysql://user:hush@s3cr3t@127.0.0.1:1/db",
    "mysql://user:hush:s3cr3t@127.0.0.1:1/db",
    "mysql://user:hush/s3cr3t@127.0.0.1:1/db",
    "mysql://user:hush?s3cr3t@127.0.0.1:1/db",
    "mysql://user:hush%s3cr3t@127.0.0.1:1/db",
    "mysql://user:hush%2Fs3cr3t@127.0.0.1:1/db?ssl_key=hush",
    "mysql://user:hush#s3cr3t@127.0.0.1:1/db",
    "mysql://user:hush s3cr3t\u00fc@127.0.0.1:1/db",
    "mysql://127.0.0.1:1/db?password=hush",
    "mysql://127.0.0.1:1/db?password=hush@s3cr3t",
    "mysql://user@127.0.0.1:1/db?password=hush@s3cr3t",
    "mysql://user:hush@127.0.0.1:s3cr3t/db",
    "mysql:user:hush@127.0.0.1/db",
    "mysql://user:hush@",
    "postgresql://user:hush@127.0.0.1:1/db",
    "://user:hush@127.0.0.1/db",
]


@pytest.mark.parametrize("url", URLS)
def test_no_password_in_anything_that_is_said(
    volume: Volume, tmp_path: Path, capfd: pytest.CaptureFixture[str], url: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(url)
    environment = {"SHAREDVOL_CATALOG_FILE": str(secret)}
    directories = ("--from", str(volume.spool), "--to", str(volume.collected))
    commands = (("once",), ("config", "show"), ("config", "show", "--json"), ("config", "check"))
    runner = CliRunner(env=environment)
    said = [runner.invoke(main, (*command, *directories)) for command in commands]
    assert said[-1].exit_code in (1, 2)
    for done in said:
        assert done.exception is None or isinstance(done.exception, SystemExit), "a process would print a traceback"
        assert not any(part in done.output for part in SECRET_PARTS), done.output
        assert "Traceback" not in done.output and done.exit_code in (0, 1, 2), done.output
    around = "".join(capfd.readouterr())  # what does not go by way of sys.stdout and sys.stderr
    assert not any(part in around for part in (*SECRET_PARTS, "Traceback")), around


def test_no_password_in_the_log_or_over_http(volume: Volume, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(URLS[1])
    with service(volume, environment={"SHAREDVOL_CATALOG_FILE": str(secret)}) as served:
        served.await_reason("catalog_unavailable")
        volume.write("c1/results/a", "1")
        for path in ("/", "/status.json", "/readyz", "/metrics"):
            text = served.ask(path)[1]
            assert not any(part in text for part in SECRET_PARTS)
        settled(served)
    assert "127.0.0.1" in json.dumps(served.seen)
    assert not any(part in json.dumps(served.seen) for part in SECRET_PARTS)


def test_show_tells_values_and_where_they_come_from(volume: Volume, tmp_path: Path) -> None:
    config = tmp_path / "x.toml"
    config.write_text('kinds = ["a"]\nfollow = "none"\ncatalog = "mysql://user:hush@host:33/db?x=hush"\n')
    args = ("--from", str(volume.spool), "--to", str(volume.collected), "--config", str(config))
    done = run_cli("config", "show", "--json", *args, environment={"SHAREDVOL_DIGESTS": "false"})
    shown = json.loads(done.stdout)
    assert set(shown) == set(FIELDS)
    assert shown["digests"] == {"value": False, "from": "SHAREDVOL_DIGESTS"}
    assert shown["from"] == {"value": str(volume.spool), "from": "flag"}
    assert shown["kinds"] == {"value": ["a"], "from": str(config)}
    assert shown["quiet"] == {"value": 2.0, "from": "default"}
    assert "user:***@host:33/db?***" in shown["catalog"]["value"]
    text = run_cli("config", "show", *args).stdout
    assert len(text.splitlines()) == len(FIELDS) and "hush" not in text


def test_exit_codes_of_check(volume: Volume) -> None:
    directories = ("--from", str(volume.spool), "--to", str(volume.collected))
    source = volume.write("c1/results/a", "x")
    good = run_cli("config", "check", *directories)
    assert (good.returncode, good.stdout) == (0, "the settings are good\n")
    assert run_cli("config", "check", *directories, "--catalog", URLS[0]).returncode == 1
    for wrong in (("--follow", "lgos"), ("--catalog", "nonsense"), ("--quiet", "x"), ("--to", "/nowhere")):
        done = run_cli("config", "check", *directories, *wrong)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        if wrong[0] == "--follow":  # and `run` and `once` say the same
            assert run_cli("once", *directories, *wrong).returncode == 2
    assert source.read_text() == "x"


def test_every_setting_is_in_the_help_with_its_default() -> None:
    text = " ".join(run_cli("run", "--help").stdout.split())
    of_once = " ".join(run_cli("once", "--help").stdout.split())
    for name, described in Settings.model_fields.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        extra: Any = described.json_schema_extra
        assert f"{flag} {extra['metavar']} " in text
        assert (f"{flag} " in of_once) == (not extra["run"])
        default = described.default
        if not described.is_required() and default not in (None, "", ()):
            assert f"[default: {','.join(default) if isinstance(default, tuple) else default}]" in text


def test_digests_can_be_switched_off_by_environment(volume: Volume) -> None:
    volume.write("c1/results/a", "x")
    done = volume.cli("once", "--quiet", "0", environment={"SHAREDVOL_DIGESTS": "false"})
    assert done.returncode == 0, done
    listed = run_cli("ls", "--to", str(volume.collected), "--json")
    assert json.loads(listed.stdout.splitlines()[0])["sha256"] is None
