"""Hashes of passwords: what is made verifies, and what is foreign is bounded before it costs."""

from __future__ import annotations

import pytest

from roomcast.admin.passwords import PasswordHash, hash_text
from roomcast.config import ConfigError, load

PASSWORD = b"correct horse battery"
SALT = b"0123456789abcdef"


def test_a_hash_is_of_its_password_alone() -> None:
    made = hash_text(PASSWORD, SALT)
    read = PasswordHash.read(made)
    assert read.is_of(PASSWORD)
    assert not read.is_of(PASSWORD + b"!")
    assert not read.is_of(b"")
    assert PASSWORD.decode() not in made


def test_another_salt_makes_another_hash() -> None:
    assert hash_text(PASSWORD, SALT) != hash_text(PASSWORD, SALT[::-1])


def test_the_configuration_takes_what_the_command_prints() -> None:
    made = hash_text(PASSWORD, SALT)
    assert load(None, {"ROOMCAST_ADMIN_PASSWORD_HASH": made}).admin.password_hash == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "scrypt$ln=15,r=8,p=3$AAAA",
        # Too cheap to be a hash of a password.
        f"scrypt$ln=4,r=8,p=1${'A' * 22}${'A' * 43}",
        f"scrypt$ln=15,r=1,p=1${'A' * 22}${'A' * 43}",
        f"scrypt$ln=15,r=8,p=0${'A' * 22}${'A' * 43}",
        # More than a node can spend.
        f"scrypt$ln=30,r=8,p=1${'A' * 22}${'A' * 43}",
        f"scrypt$ln=18,r=99,p=1${'A' * 22}${'A' * 43}",
        f"scrypt$ln=15,r=8,p=99${'A' * 22}${'A' * 43}",
    ],
)
def test_what_is_no_hash_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigError, match=r"admin\.password_hash"):
        PasswordHash.read(text)
