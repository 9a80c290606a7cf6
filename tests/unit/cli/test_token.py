"""service/roomcast/cli/token.py: what is signed, and with which key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import jwt
import pytest

from roomcast.cli import main as cli
from roomcast.config import DEV_SECRET
from tests.signers import signer
from tests.unit.cli.conftest import Told


def test_a_token_for_dev(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "--user", "ann", "--info", '{"name":"Ann"}']) == 0
    out, err = capsys.readouterr()
    claims = decoded(out.strip(), DEV_SECRET)
    assert claims.pop("exp") - claims.pop("iat") == 3600
    assert claims == {"sub": "ann", "info": {"name": "Ann"}}
    assert err == "roomcast: no key is configured; signed with the one of `roomcast dev`\n"


def test_a_token_of_the_configured_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "k" * 32
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", key)
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_AUDIENCE", "chat")
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_ISSUER", "us")
    assert cli.main(["token", "--user", "", "--channel", "news", "--ttl", "60", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    claims = decoded(answer.pop("token"), key)
    assert answer == {"user": "", "channel": "news", "expires_at": claims["exp"]}
    assert claims.pop("exp") - claims.pop("iat") == 60
    assert claims == {"sub": "", "channel": "news", "aud": "chat", "iss": "us"}
    assert err == ""
    assert cli.main(["token", "--user", "ann", "--ttl", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"token", "user"}
    assert "exp" not in decoded(answer["token"], key)


def test_a_subscription_token_of_its_own_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: Told
) -> None:
    key, own = "k" * 32, "o" * 32
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", key)
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_USER_ID_CLAIM", "uid")
    monkeypatch.setenv("ROOMCAST_CLIENT_SUBSCRIPTION_TOKEN_ENABLED", "true")
    monkeypatch.setenv("ROOMCAST_CLIENT_SUBSCRIPTION_TOKEN_HMAC_SECRET_KEY", own)
    assert cli.main(["token", "--user", "ann"]) == 0
    connects = capsys.readouterr().out.strip()
    assert decoded(connects, key)["uid"] == "ann"
    assert cli.main(["token", "--user", "ann", "--channel", "news"]) == 0
    subscribes = capsys.readouterr().out.strip()
    assert decoded(subscribes, own)["sub"] == "ann"
    for token in (connects, subscribes):
        assert cli.main(["checktoken", token]) == 0
        assert "ann" in capsys.readouterr().out
    # As it was before there was a key of its own.
    assert cli.main(["token", "--user", "ann", "--channel", "news", "--claims", "{}"]) == 0
    monkeypatch.setenv("ROOMCAST_CLIENT_SUBSCRIPTION_TOKEN_HMAC_SECRET_KEY", "another" + own)
    assert cli.main(["checktoken", capsys.readouterr().out.strip()]) == 1
    assert "no server would take the token" in told()


def test_no_token_without_a_key(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("")
    assert cli.main(["token", "--user", "ann", "--config", str(path)]) == 2
    assert "client.token.hmac_secret_key is not set" in told()


def test_a_token_with_further_claims(capsys: pytest.CaptureFixture[str]) -> None:
    claims = {"caps": [{"channels": ["a"], "allow": ["pub"]}], "sub": "not this", "iat": 1}
    assert cli.main(["token", "--user", "ann", "--claims", json.dumps(claims), "--kid", "k1"]) == 0
    token = capsys.readouterr().out.strip()
    signed = decoded(token, DEV_SECRET)
    assert (signed["sub"], signed["caps"]) == ("ann", claims["caps"])
    assert signed["iat"] > 1
    header = token.partition(".")[0]
    assert json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"] == "k1"


def test_a_token_of_a_private_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No secret is needed then, nor missed."""
    config, key = tmp_path / "roomcast.toml", tmp_path / "key.pem"
    config.write_text('[client.token]\nissuer = "us"\n')
    key.write_bytes(signer("ES256").private_pem)
    arguments = ["token", "--config", str(config), "--user", "ann", "--private-key", str(key)]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    claims = jwt.decode(out.strip(), signer("ES256").public, algorithms=["ES256"], issuer="us")
    assert claims["sub"] == "ann"
    key.write_text(signer("ES256").pem)
    assert cli.main(arguments) == 2
    assert "--private-key: not a private key in PEM form" in capsys.readouterr().err
    key.unlink()
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"roomcast: {key}: No such file or directory\n"


def decoded(token: str, key: str) -> dict[str, Any]:
    """The claims of an HS256 token, without the library that signed it."""
    signed, _, signature = token.rpartition(".")
    expected = base64.urlsafe_b64encode(hmac.digest(key.encode(), signed.encode(), hashlib.sha256))
    assert signature == expected.rstrip(b"=").decode()
    payload = signed.partition(".")[2]
    claims: dict[str, Any] = json.loads(
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    )
    return claims
