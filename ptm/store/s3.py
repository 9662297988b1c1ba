"""A store in a bucket of an S3-compatible server (AWS, MinIO, Ceph, Garage, …). boto3 is imported here and in `s3_*` only.

Rules:
- `create` is a PUT with `If-None-Match: *` by a client whose SDK retries are off: a PUT that the SDK sends again meets its own
  object. After any answer that leaves it open (time-out, broken connection, 409, 412, 5xx) the key is read; only if it is
  absent the same bytes are put again.
- Everything else is safe to repeat, and the SDK repeats it (standard mode, bounded, with time-outs).
- What the server sends is not believed: sizes are counted as bytes arrive; a listed key that does not start with the prefix or
  does not pass `check_key` is passed over, and a listing out of order is an error.
- "Denied" is `AccessDenied`. Many servers say 403 for a missing key to those who may not list the bucket: that stays
  `AccessDenied`.
- Credentials are found the way boto3 finds them, never in the URL. No checksum trailers are sent, as older servers refuse them.
- What a caller's own stream raises (`source`, `sink`) is the caller's and passes unchanged.

What it does not do: keep versions, make signed URLs, resume a broken download, or remove the parts that a killed `upload` left
(they are invisible; a lifecycle rule "abort incomplete multipart uploads" frees them)."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote, urlencode

import boto3
import botocore.exceptions as sdk
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.response import StreamingBody

from ptm.errors import AccessDenied, InvalidKey, NotFound, StoreError, TooLarge, Unreachable, UsageError
from ptm.store.answers import AMBIGUOUS_CODES
from ptm.store.base import Capabilities, ObjectInfo, Progress, Store, check_key, check_prefix
from ptm.store.checks import check_folder, check_small
from ptm.store.exclusive import Outcome, is_exclusive, settle
from ptm.store.s3_errors import code_of, errors, status_of
from ptm.store.s3_parts import PART_BYTES, Target, abandon_parts, send_parts
from ptm.store.streams import Source, one_at_a_time

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef as Page

CHUNK_BYTES = 1024 * 1024
MAX_PREFIX_BYTES = 120
POOL = 32
SMALL_SECONDS = 20
"""How long a server may be silent about anything but a transfer: a connection that hangs must not cost a worker its lease."""
CREATE_TRIES = 5
FIRST_PAUSE_SECONDS = 0.2


class S3Store(Store):
    """The objects below one bucket and prefix."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        timeout_seconds: float = 60,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bucket = bucket
        self._base = _checked_base(prefix)
        query = {"endpoint_url": endpoint_url, "region": region, "profile": profile}
        given = urlencode({name: value for name, value in query.items() if value}, safe=":/")
        self.url = f"s3://{bucket}/{quote(self._base.rstrip('/'))}".rstrip("/") + (f"?{given}" if given else "")
        self._sleep = sleep
        try:
            self.core = botocore.session.Session(profile=profile)
            session = boto3.session.Session(botocore_session=self.core, region_name=region)
            make = _client_maker(session, endpoint_url)
            self._client = make(4, min(timeout_seconds, SMALL_SECONDS), True)
            self._single = make(1, min(timeout_seconds, SMALL_SECONDS), True)
            self._transfers = make(4, timeout_seconds, False)
            self.endpoint_url, self.region = self._client.meta.endpoint_url, self._client.meta.region_name
        except sdk.ProfileNotFound as e:
            raise UsageError(f"{self.url}: {e}", hint="look for it in ~/.aws/config, or leave `profile=` out of the URL") from e
        except (sdk.BotoCoreError, ValueError) as e:
            raise UsageError(f"{self.url}: {e}", hint="check endpoint_url and region in the registry's URL") from e

    def make_bucket(self) -> None:
        """Make the bucket unless it is there and may be used. `AccessDenied` if that is not allowed."""
        try:
            with errors(self.bucket):
                self._client.head_bucket(Bucket=self.bucket)
            return
        except (NotFound, AccessDenied):
            pass  # not there, or a server that does not let us ask: the answer to making it tells
        region = self._client.meta.region_name
        place = (
            {} if region in (None, "us-east-1", "aws-global") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )
        try:
            with errors(self.bucket):
                self._client.create_bucket(Bucket=self.bucket, **place)  # type: ignore[arg-type]  # any region's name
        except StoreError as e:
            code = code_of(e.__cause__)
            if code == "BucketAlreadyExists":
                raise StoreError(
                    f"bucket {self.bucket} belongs to somebody else", hint="choose another name for the bucket"
                ) from e
            if code != "BucketAlreadyOwnedByYou":
                raise

    def get(self, key: str, limit: int) -> bytes:
        return self._get(self._client, key, limit)

    def create(self, key: str, body: bytes) -> None:
        settle(key, self._attempt(check_key(key), check_small(key, body)))

    def put(self, key: str, body: bytes) -> None:
        full = self._full(key)
        with errors(key):
            self._client.put_object(Bucket=self.bucket, Key=full, Body=body)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._list(check_prefix(prefix))

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        return self._list_prefixes(check_folder(prefix))

    def head(self, key: str) -> ObjectInfo:
        full = self._full(key)
        try:
            with errors(key):
                return ObjectInfo(key, self._client.head_object(Bucket=self.bucket, Key=full)["ContentLength"])
        except (NotFound, AccessDenied):
            # an answer to HEAD has no body: it does not tell a missing key from a missing bucket, nor why it denies; GET does
            body, size = self._open(self._client, key)
            body.close()
            return ObjectInfo(key, size)

    def delete(self, key: str) -> None:
        full = self._full(key)
        with contextlib.suppress(NotFound), errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=full)

    def upload(self, key: str, source: BinaryIO, progress: Progress | None = None) -> None:
        full = self._full(key)
        config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
        config.max_in_memory_upload_chunks = 4
        stream = Source(source)
        try:
            with errors(key):
                self._transfers.upload_fileobj(
                    cast("BinaryIO", stream), self.bucket, full, Config=config, Callback=one_at_a_time(progress)
                )
        except StoreError:
            if stream.error:
                raise stream.error from None
            raise

    def upload_resumable(
        self, key: str, source: BinaryIO, journal: Path, progress: Progress | None = None, growing_to: int | None = None
    ) -> None:
        target = self._target(key)
        if growing_to is not None:
            send_parts(target, source, journal, progress, None, growing_to)
            return
        start = source.tell()
        size = source.seek(0, os.SEEK_END) - start
        source.seek(start)
        if size > PART_BYTES:
            send_parts(target, source, journal, progress, size, size)
        else:
            abandon_parts(target, journal)
            self.upload(key, source, progress)

    def abandon(self, key: str, journal: Path) -> None:
        abandon_parts(self._target(key), journal)

    def download(self, key: str, sink: BinaryIO, limit: int, progress: Progress | None = None) -> int:
        size = 0
        for chunk in self._chunks(self._transfers, key, limit):
            size += len(chunk)
            sink.write(chunk)
            if progress:
                progress(len(chunk))
        return size

    def probe(self, scratch: str) -> Capabilities:
        check_folder(scratch)
        versioned = self._is_versioned(scratch)
        exclusive = is_exclusive(self._attempt, lambda key: self.get(key, 1024), self.delete, scratch)
        return Capabilities(exclusive_create=exclusive, versioned=versioned)

    def _attempt(self, key: str, body: bytes) -> Outcome:
        """The conditional PUT, repeated only while the key is known to be absent."""
        last: StoreError | None = None
        for n in range(CREATE_TRIES):
            if n:
                self._sleep(FIRST_PAUSE_SECONDS * 2 ** (n - 1))
            try:
                if (outcome := self._put_if_absent(key, body)) or (outcome := self._compare(key, body)):
                    return outcome
            except Unreachable as e:
                last = e
        raise Unreachable(
            f"{key}: could not learn whether it was written", hint="give the same command again: that is safe"
        ) from last

    def _put_if_absent(self, key: str, body: bytes) -> Outcome | None:
        """One conditional PUT; None if its answer leaves open what is there."""
        full = self._full(key)
        try:
            with errors(key):
                self._single.put_object(Bucket=self.bucket, Key=full, Body=body, IfNoneMatch="*")
            return Outcome.WON
        except Unreachable:
            return None
        except StoreError as e:
            code, status = code_of(e.__cause__), status_of(e.__cause__)
            if code == "NotImplemented" or status == 501:
                return Outcome.UNSUPPORTED
            if code in AMBIGUOUS_CODES or status in (409, 412):
                return None
            raise

    def _compare(self, key: str, body: bytes) -> Outcome | None:
        """Whose object is there? None if there is none."""
        try:
            return Outcome.WON if self._get(self._single, key, len(body)) == body else Outcome.LOST
        except TooLarge:
            return Outcome.LOST
        except NotFound:
            return None
        except AccessDenied as e:
            hint = "a member needs s3:GetObject and s3:ListBucket for every prefix that it writes to"
            raise AccessDenied(f"{key}: could not learn whether it was written, as it may not be read", hint=hint) from e

    def _get(self, client: S3Client, key: str, limit: int) -> bytes:
        body = bytearray()
        for chunk in self._chunks(client, key, limit):
            body += chunk
        return bytes(body)

    def _chunks(self, client: S3Client, key: str, limit: int) -> Iterator[bytes]:
        """An object's content, at most limit + 1 bytes of which are read; `TooLarge` if there is more than `limit`."""
        body, announced = self._open(client, key)
        left = limit
        with contextlib.closing(body):
            if announced > limit:
                raise TooLarge(f"{key}: {announced} bytes are more than {limit}")
            while True:
                with errors(key):
                    chunk = body.read(min(CHUNK_BYTES, left + 1))
                if not chunk:
                    return
                if len(chunk) > left:
                    raise TooLarge(f"{key}: more than {limit} bytes arrived")
                left -= len(chunk)
                yield chunk

    def _open(self, client: S3Client, key: str) -> tuple[StreamingBody, int]:
        full = self._full(key)
        with errors(key):
            answer = client.get_object(Bucket=self.bucket, Key=full)
            return answer["Body"], answer["ContentLength"]

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        last = b""
        for page in self._pages(prefix):
            with errors(prefix):
                found = [ObjectInfo(self._own(item["Key"]), item["Size"]) for item in page.get("Contents", [])]
            for info in found:
                if info.key.startswith(prefix) and _is_key(info.key):
                    last = _ascending(last, info.key)
                    yield info

    def _list_prefixes(self, prefix: str) -> Iterator[str]:
        last = b""
        for page in self._pages(prefix, Delimiter="/"):
            with errors(prefix):
                found = [self._own(item["Prefix"]) for item in page.get("CommonPrefixes", [])]
            for folder in found:
                segment = folder.removeprefix(prefix).removesuffix("/")
                if folder == f"{prefix}{segment}/" and "/" not in segment and _is_key(folder[:-1]):
                    last = _ascending(last, folder)
                    yield folder

    def _pages(self, prefix: str, **more: Any) -> Iterator[Page]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._base + prefix, **more)
        )
        while True:
            try:
                with errors(prefix or self.bucket):
                    page = next(pages, None)
            except NotFound as e:
                raise StoreError(f"{self.url} does not answer as S3 does", hint="check endpoint_url in the registry's URL") from e
            if page is None:
                return
            yield page

    def _is_versioned(self, scratch: str) -> bool:
        """Ask, or (members may seldom ask) see whether a scratch object gets a version."""
        try:
            with errors(self.bucket):
                return self._client.get_bucket_versioning(Bucket=self.bucket).get("Status") == "Enabled"
        except Unreachable:
            raise
        except StoreError:
            key = f"{scratch}{secrets.token_hex(8)}-version"
            full = self._full(key)
            with errors(key):
                version = self._client.put_object(Bucket=self.bucket, Key=full, Body=b"").get("VersionId", "null")
            self.delete(key)
            return version != "null"

    def _target(self, key: str) -> Target:
        return Target(self._transfers, self.bucket, self._full(key), key)

    def full_prefix(self, prefix: str) -> str:
        """A prefix as the server knows it."""
        return self._base + check_prefix(prefix)

    def _full(self, key: str) -> str:
        return self._base + check_key(key)

    def _own(self, full: str) -> str:
        """A listed key without our base; what does not lie below it becomes a key that nobody may have."""
        return full.removeprefix(self._base) if full.startswith(self._base) else ""


def _client_maker(session: boto3.session.Session, endpoint_url: str | None) -> Callable[[int, float, bool], S3Client]:
    """Makes clients. `hash_bodies`: a request's signature is about its body, too; not for those that have a signed digest."""

    def make(attempts: int, timeout_seconds: float, hash_bodies: bool) -> S3Client:
        config = Config(
            connect_timeout=min(timeout_seconds, 10),
            read_timeout=timeout_seconds,
            max_pool_connections=POOL,
            retries={"mode": "standard", "total_max_attempts": attempts},
            s3={"payload_signing_enabled": hash_bodies, **({"addressing_style": "path"} if endpoint_url else {})},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.client("s3", endpoint_url=endpoint_url, config=config)

    return make


def _checked_base(prefix: str) -> str:
    """The part of every key that stands for the prefix: empty, or ending in '/'."""
    base = prefix.strip("/")
    if not base:
        return ""
    if len(base.encode(errors="replace")) > MAX_PREFIX_BYTES or not _is_key(base):
        raise UsageError(f"prefix {base[:40]!r} is not one", hint=f"at most {MAX_PREFIX_BYTES} bytes of '/'-separated names")
    return f"{base}/"


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except InvalidKey:
        return False
    return True


def _ascending(last: bytes, key: str) -> bytes:
    now = key.encode()
    if now <= last:
        raise StoreError(
            f"the listing is out of order at {key}", hint="this S3 server does not list keys in byte order; use another"
        )
    return now
