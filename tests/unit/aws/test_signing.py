"""service/roomcast/aws/signing.py: a signature that AWS would accept (SigV4), computed anew."""

from __future__ import annotations

import hashlib
import hmac
import re

import pytest

from roomcast.aws.signing import HttpSigner
from roomcast.ports import PortError

URL = "https://abc.lambda-url.eu-west-1.on.aws/hook?v=1"
BODY = b'{"client":"c"}'
KEY, SECRET, TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG", "session-token"


def digest(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signature(secret: str, stamp: str, canonical: str) -> str:
    """As AWS describes it: Signature Version 4."""
    scope = f"{stamp[:8]}/eu-west-1/lambda/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (stamp[:8], "eu-west-1", "lambda", "aws4_request"):
        key = digest(key, part)
    return digest(key, text).hex()


async def test_a_request_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    signer = HttpSigner()
    await signer.ready()
    headers = await signer.headers(URL, BODY, service="lambda", region="eu-west-1")
    assert set(headers) == {"Authorization", "X-Amz-Date", "X-Amz-Security-Token"}
    assert headers["X-Amz-Security-Token"] == TOKEN
    stamp = headers["X-Amz-Date"]
    canonical = "\n".join(
        [
            *("POST", "/hook", "v=1", "host:abc.lambda-url.eu-west-1.on.aws"),
            *(f"x-amz-date:{stamp}", f"x-amz-security-token:{TOKEN}", ""),
            *("host;x-amz-date;x-amz-security-token", hashlib.sha256(BODY).hexdigest()),
        ]
    )
    found = re.search("Signature=([0-9a-f]{64})$", headers["Authorization"])
    assert found is not None
    assert found[1] == signature(SECRET, stamp, canonical)
    assert f"Credential={KEY}/{stamp[:8]}/eu-west-1/lambda/" in headers["Authorization"]


async def test_without_credentials_nothing_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(PortError, match="there are none"):
        await HttpSigner().ready()
