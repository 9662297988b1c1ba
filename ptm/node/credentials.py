"""The site's secrets for its data sources: read from files that only the node's account can read, and made into what a server
wants. No secret is ever in node.toml, in a log, or in anything that a container gets."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from ptm.config import DataSource, FileSource, HttpSource, PostgresSource, SparqlSource, TcpSource
from ptm.errors import ConfigError

MAX_BYTES = 64 * 1024


def read_secret(path: Path) -> str:
    """The one line that a file holds. `ConfigError` if there is none, or if another account could read it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path} is no file", hint="a secret is one line in a file of its own")
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigError(f"other accounts can read {path}", hint=f"chmod 600 {path}")
            text = file.read(MAX_BYTES).decode()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}", hint="the node's account needs to read it") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is no text", hint="a secret is one line of UTF-8") from e
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret or not secret.isprintable():
        raise ConfigError(f"{path} does not hold one line of text", hint="a secret is one line in a file of its own")
    return secret


def authorization(source: SparqlSource | HttpSource) -> tuple[str | None, tuple[str, ...]]:
    """The `Authorization` header for a source, and each text that must not come back in an answer."""
    if source.token_file is not None:
        token = read_secret(source.token_file)
        return f"Bearer {token}", (token,)
    if source.user is not None and source.password_file is not None:
        password = read_secret(source.password_file)
        both = base64.b64encode(f"{source.user}:{password}".encode()).decode()
        return f"Basic {both}", (password, both)
    return None, ()


def check_source(name: str, source: DataSource) -> None:
    """Whether what a source needs on this machine is there: its path, or its secrets. `ConfigError` if not."""
    try:
        if isinstance(source, FileSource):
            _there(source.path)
        elif not isinstance(source, TcpSource):
            if source.ca_file is not None:
                _there(source.ca_file)
            for secret in (source.password_file, None if isinstance(source, PostgresSource) else source.token_file):
                if secret is not None:
                    read_secret(secret)
    except ConfigError as e:
        raise ConfigError(f"data source {name}: {e}", hint=e.hint) from e


def _there(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{path} is not there", hint="correct it in node.toml")
