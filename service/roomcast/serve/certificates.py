"""Reads the certificate of a port from its files, and reads them again when they have changed."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from roomcast.config import Config, ConfigError, TlsConfig
from roomcast.ports import Clock

__all__ = ["FILE_BYTES_MAX", "LOOK_S", "Certificate", "certificates_of"]

# The interval between two looks at the files. Nobody waits for a new certificate.
LOOK_S: Final = 5.0
# A certificate with those of its authorities has some 10 KiB.
FILE_BYTES_MAX: Final = 1024 * 1024
# What the server speaks behind TLS.
_PROTOCOLS: Final = ("http/1.1",)

# What to do about a file that cannot be read.
_TODO: Final = {
    FileNotFoundError: "; a relative path begins in the directory in which the server is started",
    PermissionError: "; let the user that runs the server read it, and nobody else",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the files had. `begins`, `ends`: when the certificate is valid."""

    context: ssl.SSLContext
    begins: datetime
    ends: datetime


class Certificate:
    """The certificate of one table of options, such as `server.tls`.

    Connections that are open keep the one that they began with.
    """

    def __init__(self, table: str, tls: TlsConfig, clock: Clock) -> None:
        """Reads the files. Raises ConfigError, which says what to do."""
        self._table = table
        self._tls = tls
        self._clock = clock
        # Before they are read: what changes meanwhile is read again.
        self._stamp = _stamp(tls)
        self._loaded = _load(table, tls)

    def context(self) -> ssl.SSLContext:
        """What a handshake that begins now has."""
        return self._loaded.context

    async def follow(self) -> None:
        """Looks at the files until cancelled."""
        self._tell()
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Reads the files again if they have changed.

        What cannot be used is logged once, and the certificate from before stays.
        """
        # In a thread, because a file system may hang.
        stamp = await asyncio.to_thread(_stamp, self._tls)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._loaded = await asyncio.to_thread(_load, self._table, self._tls)
        except ConfigError as error:
            _log.error("certificate_refused", reason=str(error), ends=_day(self._loaded.ends))
            return
        self._tell()

    def _tell(self) -> None:
        begins, ends = self._loaded.begins, self._loaded.ends
        if begins <= datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC) < ends:
            _log.info("certificate_loaded", option=self._table, ends=_day(ends))
        else:
            _log.error(
                "certificate_not_valid", option=self._table, begins=_day(begins), ends=_day(ends)
            )


def certificates_of(config: Config, clock: Clock) -> tuple[Certificate | None, Certificate | None]:
    """The certificates of the port of clients and of the internal one; None = that has no TLS.

    Raises ConfigError.
    """
    server = config.server
    external = Certificate("server.tls", server.tls, clock) if server.tls.is_on else None
    if not server.internal_port or not server.tls_of_internal.is_on:
        return external, None
    if not server.internal_tls.is_on:
        return external, external
    return external, Certificate("server.internal_tls", server.internal_tls, clock)


def _stamp(tls: TlsConfig) -> tuple[object, ...]:
    """What is another one when the files are others."""
    return tuple(_stamp_of(Path(each)) for each in (tls.cert_file, tls.key_file))


def _stamp_of(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_ino, found.st_size


def _load(table: str, tls: TlsConfig) -> _Loaded:
    """Reads and checks the files. Raises ConfigError and nothing else."""
    try:
        return _read(table, tls)
    except ConfigError:
        raise
    except Exception as error:
        # Damaged files have the libraries raise more than they say. A node must not end of it.
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{table}.cert_file: {tls.cert_file} and {tls.key_file} cannot be used: {why}"
        ) from error


def _read(table: str, tls: TlsConfig) -> _Loaded:
    """Raises ConfigError, and whatever the libraries make of a damaged file."""
    cert_option, key_option = f"{table}.cert_file", f"{table}.key_file"
    own = _certificate(cert_option, tls.cert_file)
    key = _key(key_option, tls.key_file)
    if not _fit(own, key):
        raise ConfigError(
            f"{key_option}: {tls.key_file} is not the key of {tls.cert_file}: give the key with "
            "which that certificate was asked for; the server's own certificate has to be the "
            "first in its file"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_PROTOCOLS)
    try:
        # Never asked: a key with a passphrase was refused. But without this, OpenSSL would ask the
        # terminal for one.
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{cert_option}: {tls.cert_file} and {tls.key_file} cannot be used: {why}"
        ) from error
    return _Loaded(context, own.not_valid_before_utc, own.not_valid_after_utc)


def _certificate(option: str, path: str) -> x509.Certificate:
    """The first certificate in a file. Raises ConfigError."""
    content = _content(option, path)
    try:
        return x509.load_pem_x509_certificates(content)[0]
    except ValueError:
        raise ConfigError(
            f"{option}: {path} has no certificate in PEM form (-----BEGIN CERTIFICATE-----…)"
        ) from None


def _fit(own: x509.Certificate, key: PrivateKeyTypes) -> bool:
    try:
        return bool(own.public_key() == key.public_key())
    except (UnsupportedAlgorithm, ValueError):
        # Of a kind that is not known here. OpenSSL has the last word.
        return True


def _key(option: str, path: str) -> PrivateKeyTypes:
    content = _content(option, path)
    try:
        return load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigError(
            f"{option}: {path} has a passphrase, which nobody could give at a restart: write the "
            "key without one (openssl pkey -in … -out …), readable for this user alone"
        ) from None
    except (UnsupportedAlgorithm, ValueError):
        raise ConfigError(
            f"{option}: {path} has no private key in PEM form (-----BEGIN PRIVATE KEY-----…)"
        ) from None


def _content(option: str, path: str) -> bytes:
    """Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{option}: {path} cannot be read: {error.strerror or error}"
            + _TODO.get(type(error), "")
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{option}: {path} is too large for a file in PEM form")
    return content


def _day(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
