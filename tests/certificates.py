"""Certificates for servers of tests, each signed by itself."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

__all__ = ["Pair", "trusting"]

_DAY: Final = timedelta(days=1)


class Pair:
    """A certificate of 127.0.0.1 that is `name`'s, and its key, in PEM form."""

    def __init__(self, name: str, *, ended: bool = False, passphrase: bytes = b"") -> None:
        """`ended`: it was valid until yesterday."""
        key = ec.generate_private_key(ec.SECP256R1())
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        ends = datetime.now(UTC) + (-_DAY if ended else _DAY)
        self.name = name
        self.cert = (
            x509.CertificateBuilder()
            .subject_name(named)
            .issuer_name(named)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(ends - 3 * _DAY)
            .not_valid_after(ends)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )
        self.key = key.private_bytes(
            Encoding.PEM,
            PrivateFormat.PKCS8,
            BestAvailableEncryption(passphrase) if passphrase else NoEncryption(),
        )

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Writes both, over those that are there. Returns where: the certificate, the key."""
        cert, key = directory / "cert.pem", directory / "key.pem"
        cert.write_bytes(self.cert)
        key.write_bytes(self.key)
        return cert, key


def trusting(*pairs: Pair) -> ssl.SSLContext:
    """For clients that know these certificates and no others."""
    return ssl.create_default_context(cadata="".join(pair.cert.decode() for pair in pairs))
