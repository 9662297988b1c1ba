"""Every error ptm raises, drawn as a tree.

    PtmError                       1   anything that has no better place below
    ├── UsageError                 2   a flag, a file or a setting that a person can correct
    │   └── ConfigError            2   … in a TOML file or a profile
    ├── StoreError                10   the registry's storage
    │   ├── Unreachable           10   no answer, or only answers that promise nothing (5xx, time-out)
    │   ├── AccessDenied          10   the store said no; never reported as "not there"
    │   ├── NotFound              10   the key does not exist
    │   ├── TooLarge              11   an object larger than the reader is willing to take
    │   ├── InvalidKey             2   a key that no store may be asked for
    │   └── AlreadyExists         12   create-if-absent met somebody else's object
    ├── VerificationError         11   something was read that may not be believed
    │   ├── Malformed             11   not the JSON, the shape or the size it has to be
    │   ├── BadSignature          11   not signed by the key that the roster names
    │   ├── NotForUs              11   authentic, but of another registry, site, task or recipient
    │   ├── NotAllowed            11   authentic, but its signer may not say this (role, revoked)
    │   ├── Outdated              11   expired, or made in the future
    │   ├── DigestMismatch        11   size or SHA-256 differs from what was signed
    │   ├── SealError             11   cannot be decrypted, or sealed for another purpose
    │   └── TrustError            11   the roster's TUF metadata
    │       ├── UntrustedRoot     11   the root is not the pinned one, or its chain is broken
    │       ├── Rollback          11   older than what was seen before
    │       ├── Frozen            11   root, targets or snapshot out of date
    │       ├── ExpiredTimestamp  11   the timestamp out of date: nobody renews, or somebody hides it
    │       ├── MixAndMatch       11   files of different versions put together
    │       └── BadKey            11   a key that may not be admitted (low order, in use)
    ├── KeyFileError               1   a private key that cannot be read or is not safe
    ├── RunnerError                1   container engine or process runner
    ├── RunFailed                 13   a site's run did not complete
    └── TimedOut                  14   waited as long as asked

`exit_code` is what the command line exits with; `hint` is one line of advice, or None.
Interrupted by the user is 130 and is not an error of ours.
"""

from __future__ import annotations


class PtmError(Exception):
    """Base of all errors that ptm raises on purpose.

    `str(error)` is one line: what happened, to what. `hint` says what to do about it.
    """

    exit_code = 1
    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class UsageError(PtmError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class StoreError(PtmError):
    exit_code = 10


class Unreachable(StoreError):
    hint = "check the address, the network and the proxy; the same command may be given again"


class AccessDenied(StoreError):
    hint = "check the credentials and the bucket policy of this prefix"


class NotFound(StoreError):
    pass


class TooLarge(StoreError):
    exit_code = 11


class InvalidKey(StoreError):
    exit_code = 2


class AlreadyExists(StoreError):
    exit_code = 12


class VerificationError(PtmError):
    exit_code = 11


class Malformed(VerificationError):
    pass


class BadSignature(VerificationError):
    pass


class NotForUs(VerificationError):
    pass


class NotAllowed(VerificationError):
    pass


class Outdated(VerificationError):
    pass


class DigestMismatch(VerificationError):
    pass


class SealError(VerificationError):
    pass


class TrustError(VerificationError):
    pass


class UntrustedRoot(TrustError):
    hint = "compare the fingerprint with the coordinator by another way than the bucket"


class Rollback(TrustError):
    hint = "somebody put back an old state of the registry; ask the coordinator"


class Frozen(TrustError):
    hint = "ask the coordinator to run `ptm registry renew`"


class ExpiredTimestamp(TrustError):
    hint = "ask the coordinator to run `ptm registry renew`; if they did, somebody hides it from you"


class MixAndMatch(TrustError):
    hint = "the registry's trust/ folder was tampered with or half copied; ask the coordinator"


class BadKey(TrustError):
    pass


class KeyFileError(PtmError):
    pass


class RunnerError(PtmError):
    pass


class RunFailed(PtmError):
    exit_code = 13


class TimedOut(PtmError):
    exit_code = 14
