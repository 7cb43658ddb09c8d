"""Read settings from the environment, or from files with secrets that container engines mount."""

from __future__ import annotations

import os
from pathlib import Path

from sharedvol.errors import describe
from sharedvol_sidecar.errors import ConfigError

SECRET = "_FILE"
"""``SHAREDVOL_CATALOG_FILE`` names a file with the value, because container engines pass secrets as files."""

_LONGEST = 65_536  # bytes


def read_variable(name: str) -> tuple[str, str] | None:
    """Return a setting's value and its variable, which has the value or names a file with it; None if neither is set.

    Args:
        name: the variable, such as ``SHAREDVOL_CATALOG``. An empty one counts as not set.

    Raises:
        ConfigError: both are set, or the file cannot be read.
    """
    plain, path = os.environ.get(name, ""), os.environ.get(name + SECRET, "")
    if plain and path:
        raise ConfigError(f"{name} and {name}{SECRET} are both set: leave one out")
    if path:
        return read_secret(Path(path), name + SECRET), name + SECRET
    return (plain, name) if plain else None


def read_secret(path: Path, name: str) -> str:
    """Return the text of a file without the line break at its end.

    Args:
        path: the file.
        name: the variable that names it.

    Raises:
        ConfigError: it cannot be read, is empty, or is not text.
    """
    # No message repeats the path, because the variable may contain the secret itself by mistake.
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST + 1)
        if len(raw) > _LONGEST:
            raise ConfigError(f"{name}: the file has more than {_LONGEST} bytes: check that it is the secret")
        text = raw.decode("utf-8").strip("\r\n")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise ConfigError(f"{name}: the file is not text") from None
        reason = describe(error) if isinstance(error, OSError) else "not a path"
        raise ConfigError(
            f"{name}: cannot read the file: {reason}; set it to the path of a file; check that the secret is mounted"
        ) from None
    if not text:
        raise ConfigError(f"{name}: the file is empty: write the value into it, or leave {name} out")
    return text
