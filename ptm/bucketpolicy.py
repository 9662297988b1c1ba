"""What each member may do in an S3 bucket, as a policy in S3's own language, for whoever runs the bucket to attach.

Signatures, not policies, are what ptm relies on: a policy keeps a member from reading sizes, filling or emptying what is not
theirs. Everybody reads the trust store and what sites publish; writes only below their own names; into an inbox a member writes
below its own name there, and its party alone reads it and removes what is in it.

What this does not do: talk to a server. File stores have owners and modes instead."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from ptm.errors import UsageError
from ptm.model import Kind

READ, WRITE, REMOVE = "s3:GetObject", "s3:PutObject", "s3:DeleteObject"
PARTS = ("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
"""What big uploads need besides."""
SEEN = ("ptm.json", "trust/", "sites/", "users/")
"""What every member may read: it is signed, and sealed to whom it is for."""


def policy_for(url: str, name: str, kind: Kind) -> dict[str, Any]:
    """The policy of a member (of a kind) in the bucket of an `s3://` registry. `UsageError` for any other registry."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.hostname:
        raise UsageError(f"{url} is not a bucket, and has no policies", hint="on a file store use owners and modes")
    base = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
    own, sent = _own(name, kind), f"inbox/*/{name}/"
    return {
        "Version": "2012-10-17",
        "Statement": [
            _allow((READ,), _objects(parts.hostname, base, [*SEEN, *own, sent])),
            _allow((WRITE, REMOVE, *PARTS), _objects(parts.hostname, base, [*own, sent])),
            {
                **_allow(("s3:ListBucket",), [f"arn:aws:s3:::{parts.hostname}"]),
                "Condition": {"StringLike": {"s3:prefix": [f"{base}{prefix}*" for prefix in [*SEEN, *own, sent]]}},
            },
            _allow(("s3:ListBucketMultipartUploads", "s3:GetBucketLocation"), [f"arn:aws:s3:::{parts.hostname}"]),
        ],
    }


def _own(name: str, kind: Kind) -> list[str]:
    """The prefixes where a member may do everything. Whoever it is, something may be passed on to it."""
    inbox = f"inbox/{name}/"
    if kind == "coordinator":
        return ["ptm.json", "trust/", f"users/{name}/", f"queue/*/{name}/", inbox, f"sites/{name}/receipts/"]
    if kind == "researcher":
        return [f"users/{name}/", f"queue/*/{name}/", f"trust/pending/{name}/", inbox, f"sites/{name}/receipts/"]
    return [f"sites/{name}/", f"queue/{name}/", inbox, f"trust/pending/{name}/"]


def _objects(bucket: str, base: str, prefixes: list[str]) -> list[str]:
    return [f"arn:aws:s3:::{bucket}/{base}{prefix}{'*' if prefix.endswith('/') else ''}" for prefix in prefixes]


def _allow(actions: tuple[str, ...], resources: list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resources}
