"""service/roomcast/cli/checkconfig.py: what is printed, and what it looks at."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from roomcast.cli import main as cli
from tests.certificates import Pair
from tests.signers import signer
from tests.unit.cli.conftest import Told


def test_checkconfig(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("[[channel.namespaces]]\nname = 'chat'\n")
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", "hush" * 8)
    assert cli.main(["checkconfig", "--config", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["channel"]["namespaces"][0]["name"] == "chat"
    assert document["client"]["token"]["hmac_secret_key"] == "***"
    assert err == ""
    assert cli.main(["checkconfig", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert 'hmac_secret_key = "***"\n' in out
    assert "hush" not in out


def test_checkconfig_tells_what_is_hardly_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkconfig"]) == 0
    assert "roomcast: warning: no token key" in capsys.readouterr().err


def test_checkconfig_looks_at_the_key(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", '{"kty":"oct","k":"c2VjcmV0"}')
    assert cli.main(["checkconfig"]) == 2
    assert told().startswith("client.token.hmac_secret_key must be a secret")


def test_checkconfig_looks_at_certificates(
    monkeypatch: pytest.MonkeyPatch, told: Told, tmp_path: Path
) -> None:
    cert, key = Pair("a").write(tmp_path)
    key.unlink()
    monkeypatch.setenv("ROOMCAST_SERVER_TLS_CERT_FILE", str(cert))
    monkeypatch.setenv("ROOMCAST_SERVER_TLS_KEY_FILE", str(key))
    assert cli.main(["checkconfig"]) == 2
    assert told().startswith(f"server.tls.key_file: {key} cannot be read: No such file")


def test_checkconfig_looks_at_public_keys(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_RSA_PUBLIC_KEY", signer("ES256").pem)
    assert cli.main(["checkconfig"]) == 2
    assert told() == (
        "client.token.rsa_public_key must be a public key of its type; found a key of another type"
    )


@pytest.mark.parametrize(
    "option, value",
    [
        ("ECDSA_PUBLIC_KEY", signer("ES256").pem),
        ("ED25519_PUBLIC_KEY", signer("EdDSA").pem),
        ("JWKS_PUBLIC_ENDPOINT", "https://example.com/jwks"),
    ],
)
def test_any_key_lets_somebody_connect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    monkeypatch.setenv(f"ROOMCAST_CLIENT_TOKEN_{option}", value)
    assert cli.main(["checkconfig"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["checkconfig", "dev"])
def test_a_hook_that_is_not_there(
    command: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("ROOMCAST_HOOKS_PUBLISH", "json:loads")
    assert cli.main([command]) == 2
    assert told() == "hooks.publish: json:loads is not an async function"


def test_who_has_a_connect_hook_needs_no_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(_event: object) -> None:
        """No opinion."""

    module = types.ModuleType("an_application")
    module.connect = connect  # type: ignore[attr-defined]  # that is what a module is for
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("ROOMCAST_HOOKS_CONNECT", "an_application:connect")
    assert cli.main(["checkconfig"]) == 0
    assert capsys.readouterr().err == ""
