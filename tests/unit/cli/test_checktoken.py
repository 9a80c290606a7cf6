"""service/roomcast/cli/checktoken.py: which tokens a server would take, and what they allow."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import roomcast
from roomcast.auth.keys import private_key
from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.cli import main as cli
from roomcast.config import DEV_SECRET
from tests.signers import jwks, signer
from tests.unit.cli.conftest import Told

HOUR_S = 3600


def test_a_connection_token(capsys: pytest.CaptureFixture[str]) -> None:
    claims = {
        "channels": ["news"],
        "subs": {"alerts": {}},
        "caps": [{"channels": ["chat:*"], "match": "wildcard", "allow": ["sub", "pub"]}],
    }
    token = sign_connection("ann", DEV_SECRET, HOUR_S, {"name": "Änn\x1b"}, claims=claims)
    assert cli.main(["checktoken", token]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    told = {name: value.strip() for name, value in lines.items()}
    expires = told.pop("expires")
    assert expires.endswith(("in 1h", "in 59m 59s", "in 59m 58s"))
    assert told == {
        "valid": "a connection token",
        "user": "ann",
        "subscribed to": "alerts, news",
        "may": "pub, sub in chat:*",
        "info": '{"name": "Änn\\u001b"}',
    }


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = int(time.time())
    token = sign_subscription(
        "", "news", DEV_SECRET, HOUR_S, now_s=now_s, claims={"allow": ["hst", "pub", "unknown"]}
    )
    assert cli.main(["checktoken", "--json", token]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "kind": "subscription",
        "user": "",
        "channel": "news",
        "client": "",
        "allow": ["hst", "pub"],
        "expires_at": now_s + HOUR_S,
        "info": None,
    }


def test_a_token_of_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = sign_connection("", DEV_SECRET, 0)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    assert cli.main(["checktoken", "-"]) == 0
    out = capsys.readouterr().out
    assert "none: anonymous" in out
    assert "never" in out


@pytest.mark.parametrize(
    "token, why",
    [
        ("", "malformed header"),
        ("a.b.c", "malformed header"),
        (sign_connection("ann", "k" * 32, HOUR_S), "malformed, or not signed with our key"),
        (sign_connection("ann", DEV_SECRET, HOUR_S, now_s=1), "expired"),
        (sign_subscription("ann", "news", DEV_SECRET, HOUR_S, now_s=1), "expired"),
        (sign_connection("ann", DEV_SECRET, 0, claims={"nbf": 2**40}), "not valid yet"),
        (sign_connection("ann", DEV_SECRET, 0, claims={"channel": 5}), "channel"),
    ],
)
def test_a_token_that_no_server_would_take(told: Told, token: str, why: str) -> None:
    assert cli.main(["checktoken", token]) == 1
    said = told()
    assert said.startswith("no server would take the token: ")
    assert why in said


def test_by_the_keys_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], told: Told
) -> None:
    ours, path = signer("ES256"), tmp_path / "roomcast.toml"
    pem = ours.pem.replace("\n", "\\n")
    path.write_text(f'[client.token]\necdsa_public_key = "{pem}"\nissuer = "us"\n')
    arguments = ["checktoken", "--config", str(path)]
    assert cli.main([*arguments, ours.sign({"sub": "ann", "iss": "us"})]) == 0
    assert "ann" in capsys.readouterr().out
    assert cli.main([*arguments, ours.sign({"sub": "ann", "iss": "them"})]) == 1
    assert "another issuer" in told()
    both = (
        f'[client.token]\nhmac_secret_key = "{"n" * 32}"\nhmac_previous_secret_key = "{"o" * 32}"\n'
    )
    old = sign_connection("ann", "o" * 32, 0)
    path.write_text(both)
    assert cli.main([*arguments, old]) == 0
    assert "ann" in capsys.readouterr().out
    path.write_text(f"{both}hmac_previous_secret_key_valid_until = 1700000000\n")
    assert cli.main([*arguments, old]) == 1
    assert "token expired" in told()
    path.write_text("")
    assert cli.main([*arguments, "x"]) == 2
    assert "client.token has no key" in told()


def test_what_the_servers_parts_log_is_no_part_of_what_it_prints() -> None:
    """A program reads standard output; the keys' change was told there as well."""

    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            body = jwks(signer("ES256").jwk(), {"kty": "oct", "kid": "no", "k": "AAAA"})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the library's name
            """Not to stderr."""

    key = private_key(signer("ES256").private_pem)
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "roomcast", "checktoken", "--json", "-"],
                input=sign_connection("ann", key, HOUR_S, kid="k1"),
                capture_output=True,
                text=True,
                timeout=30,
                cwd=Path(roomcast.__file__).parents[1],
                env=os.environ
                | {
                    "ROOMCAST_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT": (
                        f"http://127.0.0.1:{server.server_port}/jwks"
                    )
                },
            )
        finally:
            server.shutdown()
            serving.join()
    assert done.returncode == 0
    assert json.loads(done.stdout)["user"] == "ann"
    assert "jwks_keys_refused" in done.stderr
