"""Makes and verifies the hash of the page's password: scrypt (RFC 7914), in one line of text.

    scrypt$ln=15,r=8,p=3$SALT$KEY     ln: the logarithm of N; SALT and KEY in base64url

A hash from the configuration is foreign data: its costs are bounded before anything is computed.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import scrypt
from typing import Final

from roomcast.config.messages import ConfigError

__all__ = [
    "MEMORY_BYTES_MAX",
    "PASSWORD_BYTES_MAX",
    "PASSWORD_CHARS_MIN",
    "SALT_BYTES",
    "PasswordHash",
    "hash_text",
]

# What a new password must have: a guess costs some 0.2 s of one core, offline too.
PASSWORD_CHARS_MIN: Final = 12
# No password is longer. It is hashed down to 32 bytes in any case.
PASSWORD_BYTES_MAX: Final = 1024
SALT_BYTES: Final = 16
_KEY_BYTES: Final = 32
# 32 MiB, three times over: some 0.2 s. OWASP names these as its equals of 128 MiB once.
_LN: Final = 15
_R: Final = 8
_P: Final = 3
# What a hash of the configuration may ask for. Memory is 128 × N × r.
MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024
_P_MAX: Final = 8
_LN_MIN: Final = 14
_R_MIN: Final = 8
# OpenSSL needs some more than what the algorithm says.
_ROOM_BYTES: Final = 1024 * 1024

_FORM: Final = re.compile(
    r"scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})\$([A-Za-z0-9_-]+)\$([A-Za-z0-9_-]+)"
)


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """A hash that was read from its text."""

    ln: int
    r: int
    p: int
    salt: bytes
    key: bytes

    @classmethod
    def read(cls, text: str) -> PasswordHash:
        """Raises ConfigError for what `roomcast passwordhash` would not print."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError("admin.password_hash must be what `roomcast passwordhash` prints")
        ln, r, p = (int(each) for each in found.groups()[:3])
        if not (
            ln >= _LN_MIN and r >= _R_MIN and 1 <= p <= _P_MAX and _bytes(ln, r) <= MEMORY_BYTES_MAX
        ):
            raise ConfigError(
                "admin.password_hash costs too little, or more than a node can spend: make another "
                "with `roomcast passwordhash`"
            )
        return cls(ln, r, p, _decoded(found[4]), _decoded(found[5]))

    def is_of(self, password: bytes) -> bool:
        """Whether it is the hash of `password`. It takes some 0.2 s, without the lock of
        the interpreter.
        """
        made = _derived(password, self.salt, self.ln, self.r, self.p, len(self.key))
        return hmac.compare_digest(made, self.key)


def hash_text(password: bytes, salt: bytes) -> str:
    """The hash of `password`, as a line for the configuration. `salt`: SALT_BYTES random bytes."""
    key = _derived(password, salt, _LN, _R, _P, _KEY_BYTES)
    return f"scrypt$ln={_LN},r={_R},p={_P}${_encoded(salt)}${_encoded(key)}"


def _derived(password: bytes, salt: bytes, ln: int, r: int, p: int, size: int) -> bytes:
    return scrypt(
        password, salt=salt, n=1 << ln, r=r, p=p, maxmem=_bytes(ln, r) + _ROOM_BYTES, dklen=size
    )


def _bytes(ln: int, r: int) -> int:
    return 128 * r << ln


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
