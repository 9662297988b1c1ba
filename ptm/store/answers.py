"""What an S3 server's refusal means, from its error code and HTTP status: which of our errors, and what to do about it.

"Denied" never becomes "not there", and an answer that promises nothing (5xx, throttling) is `Unreachable`.
What this does not do: talk to the server, or know the SDK; see `ptm.store.s3`.
"""

from __future__ import annotations

from ptm.errors import AccessDenied, NotFound, StoreError, Unreachable

AMBIGUOUS_CODES = {"ConditionalRequestConflict", "OperationAborted", "PreconditionFailed", "RequestTimeout", "SlowDown"}
"""Answers to a conditional PUT after which the key has to be read."""

_DENIED_CODES = {
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_REGION_CODES = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"}


def refusal(what: str, code: str, status: int) -> StoreError:
    """The error for an answer about a key, a prefix or a bucket (`what`), from its S3 error code and its HTTP status (0 if
    unknown)."""
    said = f"{what}: the server said {code or status}"
    if code == "NoSuchBucket":
        return StoreError(
            f"{what}: there is no such bucket (NoSuchBucket)",
            hint="check the bucket's name in the URL; `ptm registry create` makes a bucket",
        )
    if code == "RequestTimeTooSkewed":
        return AccessDenied(said, hint="set the clock of this machine")
    if status in (401, 403) or code in _DENIED_CODES:
        return AccessDenied(f"{what}: access denied" + (f" ({code})" if code not in ("", "AccessDenied") else ""))
    if status == 404:
        return NotFound(f"{what} is not there")
    if code in _REGION_CODES or status in (301, 307):
        return StoreError(said, hint="give the bucket's region in the URL (region=…), and check endpoint_url")
    if (status >= 500 and status != 501) or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return Unreachable(said)
    return StoreError(said, hint="check the bucket's name, and that endpoint_url is an S3 server's")
