"""What the SDK raises, as the `StoreError` that says what it means. Shared by `ptm.store.s3` and `ptm.store.s3_parts`.

Every SDK error is turned here; what an answer's code means is in `ptm.store.answers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import boto3.exceptions
import botocore.exceptions as sdk
from botocore.parsers import ResponseParserError

from ptm.errors import AccessDenied, StoreError, Unreachable
from ptm.store.answers import refusal

_NO_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.TokenRetrievalError,
    sdk.SSOError,
)
_NO_ANSWER = (sdk.HTTPClientError, sdk.ConnectionError, sdk.IncompleteReadError, ResponseParserError)
# ValueError and KeyError: what the SDK's parser raises on an answer that is not S3's. RecursionError: the SDK asks where a bucket
# is when it is redirected, and a server that answers that with a redirect too makes it ask for ever.
_SDK_ERRORS = (
    sdk.BotoCoreError,
    sdk.ClientError,
    boto3.exceptions.Boto3Error,
    ResponseParserError,
    ValueError,
    KeyError,
    RecursionError,
)


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """Turn what the SDK raises about a key, a prefix or the bucket into the `StoreError` that says what it means."""
    try:
        yield
    except sdk.ClientError as e:
        raise refusal(what, code_of(e), status_of(e)) from e
    except _NO_CREDENTIALS as e:
        raise AccessDenied(f"{what}: {e}", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws") from e
    except _NO_ANSWER as e:
        raise Unreachable(f"{what}: {_one_line(e)}") from e
    except _SDK_ERRORS as e:
        raise StoreError(f"{what}: {_one_line(e)}", hint="check that endpoint_url is an S3 server's") from e


def code_of(e: BaseException | None) -> str:
    return str(e.response.get("Error", {}).get("Code", "")) if isinstance(e, sdk.ClientError) else ""


def status_of(e: BaseException | None) -> int:
    return int(e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(e, sdk.ClientError) else 0


def _one_line(e: Exception) -> str:
    return " ".join(str(e).split()) or type(e).__name__
