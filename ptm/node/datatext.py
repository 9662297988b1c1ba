"""A data source as one word of the command line, and as a table of node.toml.

| word | source |
|---|---|
| `/data/cohort.csv` | a file or folder |
| `http://…`, `https://…`, `sparql+http://…`, `sparql+https://…` | a SPARQL endpoint |
| `rest+http://…`, `rest+https://…` | an HTTP service (FHIR, REST): GET, every path below |
| `postgresql://USER@HOST:PORT/DATABASE` | a PostgreSQL database, over verified TLS |
| `tcp://HOST:PORT` | anything else that speaks TCP |

A secret is a file of its own, never a part of the word.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from ptm.config import toml_string
from ptm.errors import UsageError

WEB = {
    "http": "sparql",
    "https": "sparql",
    "sparql+http": "sparql",
    "sparql+https": "sparql",
    "rest+http": "http",
    "rest+https": "http",
}


def source_table(name: str, text: str, secret: Path | None = None) -> str:
    """The `[data.NAME]` table for a word, with the file of its secret. `UsageError` if it is no such word."""
    settings = _settings(name, text, secret)
    return f"\n[data.{name}]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in settings.items())


def _settings(name: str, text: str, secret: Path | None) -> dict[str, str | int]:
    scheme, colon, _ = text.partition("://")
    if not colon:
        if secret is not None:
            raise UsageError(f"--secret {name}: a file needs none", hint="give it for a service or a database")
        return {"kind": "file", "path": str(Path(text).absolute())}
    try:
        parts = urlsplit(text)
        host, port, user = parts.hostname, parts.port, unquote(parts.username or "")
    except ValueError as e:
        raise UsageError(f"--data {name}: {text!r} is no URL", hint="kind://host:port/path") from e
    if parts.password is not None:
        raise UsageError(f"--data {name}: a password does not belong in a URL", hint=f"--secret {name}=FILE, of mode 0600")
    if not host:
        raise UsageError(f"--data {name}: {text!r} names no host", hint="kind://host:port/path")
    secret_file = {} if secret is None else {"password_file" if user else "token_file": str(secret.absolute())}
    if scheme in WEB:
        url = parts._replace(scheme=scheme.rpartition("+")[2], netloc=parts.netloc.rpartition("@")[2]).geturl()
        return {"kind": WEB[scheme], "url": url, **({"user": user} if user else {}), **secret_file}
    if scheme in ("postgresql", "postgres"):
        database = unquote(parts.path.removeprefix("/"))
        if not user or not database:
            raise UsageError(f"--data {name}: a database needs a user and a name", hint="postgresql://USER@HOST:PORT/DATABASE")
        return {"kind": "postgres", "host": host, "port": port or 5432, "database": database, "user": user, **secret_file}
    if scheme == "tcp" and port is not None and secret is None:
        return {"kind": "tcp", "host": host, "port": port}
    raise UsageError(
        f"--data {name}: {text!r} is no data source", hint="a path, http(s)://, rest+http(s)://, postgresql:// or tcp://HOST:PORT"
    )


def _value(value: str | int) -> str:
    return toml_string(value) if isinstance(value, str) else str(value)
