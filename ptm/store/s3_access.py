"""How boto3 gets at a server, for a request that boto3 does not have: with which credentials, certificates and proxy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from botocore.httpsession import get_cert_path
from botocore.session import Session
from botocore.utils import get_environ_proxies


@dataclass(frozen=True)
class AccessKeys:
    """An access key, its secret, and the token of a session."""

    id: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False)


def access_keys(core: Session) -> AccessKeys | None:
    """What boto3 finds, renewed as it renews them; None if it finds none."""
    credentials = core.get_credentials()
    if credentials is None:
        return None
    now = credentials.get_frozen_credentials()
    return AccessKeys(now.access_key or "", now.secret_key or "", now.token)


def ca_file(core: Session) -> str | None:
    """The certificates that a server's is checked against."""
    return core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or get_cert_path(True)


def proxy_for(endpoint: str) -> str | None:
    """The URL of the proxy on the way to a server, if there is one."""
    return get_environ_proxies(endpoint).get(urlsplit(endpoint).scheme)
