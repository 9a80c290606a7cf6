"""service/roomcast/serve/certificates.py: what is refused and how that is said, and what a change
of the files changes.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from base64 import b64decode, encodebytes
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from roomcast.config import Config, ConfigError, ServerConfig, TlsConfig
from roomcast.serve import certificates as module
from roomcast.serve.certificates import FILE_BYTES_MAX, Certificate, certificates_of
from roomcast.system import SystemClock
from tests.certificates import Pair, trusting
from tests.unit.worlds import until

CLOCK: Final = SystemClock()
FIRST, SECOND = Pair("first"), Pair("second")


def options(directory: Path) -> TlsConfig:
    return TlsConfig(str(directory / "cert.pem"), str(directory / "key.pem"))


def written(directory: Path, pair: Pair = FIRST) -> TlsConfig:
    directory.mkdir(exist_ok=True)
    pair.write(directory)
    return options(directory)


def refusal(tls: TlsConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        Certificate("server.tls", tls, CLOCK)
    told = str(caught.value)
    assert "\n" not in told
    assert "PRIVATE" not in told.replace("-----BEGIN PRIVATE KEY-----…", "")
    return told


def shown(context: ssl.SSLContext) -> str:
    """The name in the certificate that a client of `context` is shown. Without any network."""
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(FIRST, SECOND).wrap_bio(there, here, server_hostname="127.0.0.1")
    server = context.wrap_bio(here, there, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = client.getpeercert()
    assert found is not None
    return str(dict(each[0] for each in found["subject"])["commonName"])  # type: ignore[misc]  # typeshed's type has all that may be in it


def test_handshakes_have_the_certificate_and_no_old_tls(tmp_path: Path) -> None:
    context = Certificate("server.tls", written(tmp_path), CLOCK).context()
    assert shown(context) == "first"
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def _no_cert(directory: Path) -> None:
    (directory / "cert.pem").unlink()


def _no_key(directory: Path) -> None:
    (directory / "key.pem").unlink()


def _directory(directory: Path) -> None:
    (directory / "key.pem").unlink()
    (directory / "key.pem").mkdir()


def _other_key(directory: Path) -> None:
    (directory / "key.pem").write_bytes(SECOND.key)


def _no_pem(directory: Path) -> None:
    (directory / "cert.pem").write_bytes(b"\x30\x82")


def _key_as_cert(directory: Path) -> None:
    (directory / "cert.pem").write_bytes(FIRST.key)


def _cert_as_key(directory: Path) -> None:
    (directory / "key.pem").write_bytes(FIRST.cert)


def _odd_version(directory: Path) -> None:
    """Of a version that there is not. What cryptography raises for it is no ValueError."""
    kept = FIRST.cert.split(b"-----")[2]
    der = b64decode(kept).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x22", 1)
    pem = b"-----BEGIN CERTIFICATE-----\n" + encodebytes(der) + b"-----END CERTIFICATE-----\n"
    (directory / "cert.pem").write_bytes(pem)


def _passphrase(directory: Path) -> None:
    pair = Pair("locked", passphrase=b"a passphrase")
    pair.write(directory)


def _large(directory: Path) -> None:
    (directory / "cert.pem").write_bytes(b"x" * (FILE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_no_cert, "server.tls.cert_file: {dir}/cert.pem cannot be read: No such file"),
        (_no_key, "server.tls.key_file: {dir}/key.pem cannot be read: No such file"),
        (_directory, "server.tls.key_file: {dir}/key.pem cannot be read: Is a directory"),
        (_other_key, "server.tls.key_file: {dir}/key.pem is not the key of {dir}/cert.pem: give"),
        (_no_pem, "server.tls.cert_file: {dir}/cert.pem has no certificate in PEM form"),
        (_key_as_cert, "server.tls.cert_file: {dir}/cert.pem has no certificate in PEM form"),
        (_cert_as_key, "server.tls.key_file: {dir}/key.pem has no private key in PEM form"),
        (_passphrase, "server.tls.key_file: {dir}/key.pem has a passphrase"),
        (_large, "server.tls.cert_file: {dir}/cert.pem is too large"),
    ],
)
def test_what_is_wrong_is_said_with_the_option_and_the_file(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    tls = written(tmp_path)
    spoil(tmp_path)
    assert said.format(dir=tmp_path) in refusal(tls)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, who may read everything.
    def refused(self: Path, mode: str) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    tls = written(tmp_path)
    monkeypatch.setattr(Path, "open", refused)
    assert "cannot be read: Permission denied; let the user" in refusal(tls)


def test_what_openssl_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A key that is too small for its level of security, for one.
    tls = written(tmp_path)
    monkeypatch.setattr(module, "_fit", lambda *_: True)
    _other_key(tmp_path)
    assert "cannot be used: KEY_VALUES_MISMATCH" in refusal(tls)


async def test_new_files_are_taken(tmp_path: Path) -> None:
    certificate = Certificate("server.tls", written(tmp_path), CLOCK)
    before = certificate.context()
    await certificate.look()
    assert certificate.context() is before, "nothing has changed"
    SECOND.write(tmp_path)
    with capture_logs() as logs:
        await certificate.look()
        await certificate.look()
    assert shown(certificate.context()) == "second"
    assert shown(before) == "first", "what goes on with it is not disturbed"
    assert [each["event"] for each in logs] == ["certificate_loaded"]
    assert logs[0]["option"] == "server.tls"


async def test_files_behind_a_link_that_turns(tmp_path: Path) -> None:
    # As certbot and Kubernetes replace them.
    written(tmp_path / "1")
    written(tmp_path / "2", SECOND)
    link = tmp_path / "live"
    link.symlink_to(tmp_path / "1")
    certificate = Certificate("server.tls", options(link), CLOCK)
    link.unlink()
    link.symlink_to(tmp_path / "2")
    await certificate.look()
    assert shown(certificate.context()) == "second"


@pytest.mark.parametrize("spoil", [_other_key, _no_pem, _no_cert, _passphrase, _odd_version])
async def test_what_cannot_be_used_is_told_once_and_the_old_one_stays(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    certificate = Certificate("server.tls", written(tmp_path), CLOCK)
    spoil(tmp_path)
    with capture_logs() as logs:
        for _ in range(3):
            await certificate.look()
    assert [each["event"] for each in logs] == ["certificate_refused"]
    assert "server.tls." in logs[0]["reason"]
    assert shown(certificate.context()) == "first"
    # And the next good one is taken.
    SECOND.write(tmp_path)
    await certificate.look()
    assert shown(certificate.context()) == "second"


@pytest.mark.parametrize(
    "pair, event",
    [(FIRST, "certificate_loaded"), (Pair("old", ended=True), "certificate_not_valid")],
)
async def test_when_it_ends_is_told_at_the_start(tmp_path: Path, pair: Pair, event: str) -> None:
    certificate = Certificate("server.tls", written(tmp_path, pair), CLOCK)
    with capture_logs() as logs:
        following = asyncio.create_task(certificate.follow())
        await until(lambda: logs)
        following.cancel()
    assert logs[0]["event"] == event
    assert logs[0]["ends"].endswith("+00:00")


async def test_the_files_are_looked_at_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    certificate = Certificate("server.tls", written(tmp_path), CLOCK)
    following = asyncio.create_task(certificate.follow())
    SECOND.write(tmp_path)
    before = certificate.context()
    await until(lambda: certificate.context() is not before)
    assert shown(certificate.context()) == "second"
    following.cancel()


def test_which_port_has_which(tmp_path: Path) -> None:
    tls, own = written(tmp_path / "1"), written(tmp_path / "2", SECOND)

    def found(server: ServerConfig) -> list[str | None]:
        both = certificates_of(Config(server=server), CLOCK)
        return [None if each is None else shown(each.context()) for each in both]

    assert found(ServerConfig()) == [None, None]
    assert found(ServerConfig(tls=tls)) == ["first", None], "there is one port"
    assert found(ServerConfig(9000)) == [None, None]
    assert found(ServerConfig(9000, tls=tls)) == ["first", "first"]
    assert found(ServerConfig(9000, tls=tls, tls_external=True)) == ["first", None]
    assert found(ServerConfig(9000, tls=tls, internal_tls=own)) == ["first", "second"]
    assert found(ServerConfig(9000, tls=tls, internal_tls=own, tls_external=True)) == [
        "first", "second"
    ]  # fmt: skip
    assert found(ServerConfig(9000, internal_tls=own)) == [None, "second"]
    one, other = certificates_of(Config(server=ServerConfig(9000, tls=tls)), CLOCK)
    assert one is other, "it is followed once"
