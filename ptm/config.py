"""Every setting, limit and default in one place: the profile and `node.toml`, as strict types read from TOML. (What
`policy.toml` may say is in `ptm.node.rules`.)

Precedence of the home folder: `--home`, then PTM_HOME, then the platform's data folder. PTM_REGISTRY overrides the
profile's registry. A mistake in a file is a `ConfigError` that names the file and the setting."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, Field, ValidationError, model_validator

from ptm.complaint import complaint
from ptm.errors import ConfigError, UsageError
from ptm.files import private_folder, write_atomic
from ptm.model import Frozen, Kind, Name, RegistryId, Sha256

ROSTER_MAX_AGE_S = 300
"""A node refreshes a roster older than this before it accepts a task (design, section 5)."""
FUTURE_TOLERANCE_S = 300
"""A task may be this far in the future, for clocks differ."""
MAX_LIFETIME_S = 366 * 86400
MAX_TOML_BYTES = 1024 * 1024
MAX_PATH = 2000
"""The longest path that is held against an HTTP source's patterns."""

Settings = TypeVar("Settings", bound=Frozen)


class Profile(Frozen):
    """Who this home is, and of which registry. Written by `ptm join` and `ptm registry create`."""

    registry: str
    registry_id: RegistryId
    member: Name
    kind: Kind
    root_fingerprint: Sha256


class Limits(Frozen):
    """The most that one run may take at this site, and what it gets when the task does not say."""

    cpu_cores: Annotated[int, Field(ge=1, le=1024)] = 1
    ram_gb: Annotated[float, Field(gt=0, le=65536)] = 2.0
    disk_gb: Annotated[float, Field(gt=0)] = 10.0
    pids: Annotated[int, Field(ge=8, le=1_000_000)] = 256
    time_s: Annotated[int, Field(ge=1)] = 3600
    input_mb: Annotated[int, Field(ge=1)] = 10_240
    output_mb: Annotated[int, Field(ge=1)] = 1024
    output_files: Annotated[int, Field(ge=1, le=256)] = 256
    log_kb: Annotated[int, Field(ge=1)] = 1024


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError(f"{text!r} is not a regular expression: {e}") from None
    return text


class FileSource(Frozen):
    """A file or a folder at the site, shown to the container read-only at `/ptm/data/<name>`."""

    kind: Literal["file", "folder"] = "file"
    path: Path


Megabytes = Annotated[int, Field(ge=1, le=1_048_576)]
Pattern = Annotated[str, AfterValidator(_is_pattern)]


class _WebSource(Frozen):
    """What sources that speak HTTP have in common. Credentials are files of mode 0600, read by the node alone: a bearer token,
    or a user with a password. Sizes are those of one request and one answer; `run_mb` is for all answers of one run."""

    url: str
    token_file: Path | None = None
    user: Annotated[str, Field(pattern=r"^[^:\x00-\x1f]+$")] | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    request_mb: Megabytes = 16
    answer_mb: Megabytes = 1024
    run_mb: Megabytes = 4096

    @model_validator(mode="after")
    def _sound(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
            raise ValueError("url is an http:// or https:// URL, without a password in it")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        if self.token_file and self.user:
            raise ValueError("a source has a token_file, or a user and password_file, not both")
        return self


class SparqlSource(_WebSource):
    """A SPARQL endpoint at the site, that a container granted it may query at `SPARQL_ENDPOINT`, and nothing else.

    `graphs`: IRIs that a query may name with FROM. `federation`: it may use SERVICE, which makes the endpoint ask others."""

    kind: Literal["sparql"]
    graphs: tuple[str, ...] = ()
    federation: bool = False


class HttpSource(_WebSource):
    """An HTTP service at the site (FHIR, REST), of which a container may ask the listed methods and paths.

    `paths`: regular expressions that match the whole of what follows the URL's own path (`/Patient/.*`)."""

    kind: Literal["http"]
    methods: Annotated[tuple[Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], ...], Field(min_length=1)] = ("GET",)
    paths: Annotated[tuple[Pattern, ...], Field(min_length=1)] = (".*",)

    @model_validator(mode="after")
    def _without_query(self) -> Self:
        if urlsplit(self.url).query:
            raise ValueError("the url of an http source has no query")
        return self


class TcpSource(Frozen):
    """One host and port at the site; the container reaches it on loopback, byte by byte. `answer_mb` is for one
    connection, `run_mb` for all of one run."""

    kind: Literal["tcp"]
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]
    request_mb: Megabytes = 16
    answer_mb: Megabytes = 1024
    run_mb: Megabytes = 4096


class PostgresSource(Frozen):
    """A PostgreSQL database at the site. The node logs in as `user`; the container needs no password and can choose neither
    user nor database. What it may read is what that role may: give it SELECT only."""

    kind: Literal["postgres"]
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    database: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    user: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    password_file: Path | None = None
    tls: Literal["verify", "off"] = "verify"
    ca_file: Path | None = None
    request_mb: Megabytes = 16
    answer_mb: Megabytes = 1024
    run_mb: Megabytes = 4096


GatewaySource = SparqlSource | HttpSource | TcpSource | PostgresSource
"""What a container reaches through the gateway (`ptm.node.gateway`)."""
DataSource = FileSource | GatewaySource


class NodeConfig(Frozen):
    """`node.toml`: how this worker works. What it may work on is in `policy.toml`."""

    worker: Name
    runner: Literal["docker", "process"] = "docker"
    unsafe_no_sandbox: bool = False
    parallel: Annotated[int, Field(ge=1, le=256)] = 2
    poll_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    lease_s: Annotated[float, Field(ge=1, le=86400)] = 60.0
    stop_grace_s: Annotated[float, Field(ge=0, le=86400)] = 20.0
    pull: Literal["always", "never"] = "always"
    run_as: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,9}:[0-9]{1,10}$")] | None = None
    gateway_image: str | None = None
    limits: Limits = Limits()
    gateway_folder: Path | None = None
    read_only_root: bool = True
    keep_free_gb: Annotated[float, Field(ge=0)] = 1.0
    keep_images_days: Annotated[int, Field(ge=1)] | None = 30
    data: dict[Name, Annotated[DataSource, Field(discriminator="kind")]] = {}
    mirrors: dict[str, str] = {}
    process_images: dict[str, Path] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.runner == "process" and not self.unsafe_no_sandbox:
            raise ValueError("the process runner is no sandbox: it needs unsafe_no_sandbox = true")
        if self.runner == "docker" and self.gateway_image is None:
            for name, source in self.data.items():
                if not isinstance(source, FileSource):
                    raise ValueError(f"data source {name} needs gateway_image, any image with python3 (docs/data-sources.md)")
        return self


@dataclass(frozen=True)
class Home:
    """One member's folder on this machine, and where everything lies in it."""

    path: Path

    @property
    def profile(self) -> Path:
        return self.path / "profile.toml"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def trust(self) -> Path:
        return self.path / "trust"

    @property
    def node(self) -> Path:
        return self.path / "node.toml"

    @property
    def policy(self) -> Path:
        return self.path / "policy.toml"

    @property
    def state(self) -> Path:
        return self.path / "state.sqlite"

    @property
    def audit(self) -> Path:
        return self.path / "audit.jsonl"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox"

    @property
    def party(self) -> Path:
        return self.path / "party.toml"

    @property
    def ledger(self) -> Path:
        return self.path / "party.sqlite"

    @property
    def party_lock(self) -> Path:
        return self.path / "party.lock"

    @property
    def party_audit(self) -> Path:
        return self.path / "party-audit.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine"

    @property
    def collections(self) -> Path:
        return self.path / "collections"

    def make(self) -> Self:
        private_folder(self.path)
        return self


def find_home(given: str | None) -> Home:
    """The home folder: as given, else PTM_HOME, else the platform's place for user data."""
    return Home(Path(given or os.environ.get("PTM_HOME") or platformdirs.user_data_path("ptm")).expanduser().absolute())


def load_profile(home: Home) -> Profile:
    """The profile, with PTM_REGISTRY in place of its registry if that is set."""
    if not home.profile.exists():
        raise UsageError(f"{home.path} has not joined a registry", hint="`ptm join URL --root FINGERPRINT`, or give --home")
    profile = read_toml(home.profile, Profile)
    override = os.environ.get("PTM_REGISTRY")
    return profile.model_copy(update={"registry": override}) if override else profile


def save_profile(home: Home, profile: Profile) -> None:
    lines = [f"{key} = {toml_string(str(value))}\n" for key, value in profile.model_dump(mode="json").items()]
    write_atomic(home.profile, "".join(lines).encode(), mode=0o600)


def read_toml(path: Path, kind: type[Settings]) -> Settings:
    """A TOML file as a strict type; `ConfigError` with the file and the setting at fault."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TOML_BYTES)
        table = tomllib.loads(raw.decode("utf-8"))
    except FileNotFoundError as e:
        raise ConfigError(f"there is no {path}", hint="`ptm node init` writes the files of a node") from e
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}", hint="it belongs to the account that runs ptm") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: {e}", hint=f"{_advice(path, kind)}; its language is TOML, https://toml.io") from e
    if kind is NodeConfig:
        for source in table.get("data", {}).values() if isinstance(table.get("data"), dict) else ():
            if isinstance(source, dict):
                source.setdefault("kind", "file")
    try:
        return kind.model_validate(table, strict=False)
    except ValidationError as e:
        raise ConfigError(f"{path}: {complaint(e)}", hint=_advice(path, kind)) from e


def _advice(path: Path, kind: type[Frozen]) -> str:
    if kind is Profile:
        return f"`ptm join URL --root FINGERPRINT` writes {path.name} again"
    page = "trusted-party" if path.name.endswith("party.toml") else "node"
    return f"docs/{page}.md explains every setting of {path.name.removeprefix('.ptm-')}"


def toml_string(text: str) -> str:
    """A TOML string (TOML v1.0, section String): as it stands between single quotes if it has a backslash, as patterns do."""
    if "\\" in text and "'" not in text and text.isprintable():
        return f"'{text}'"
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
