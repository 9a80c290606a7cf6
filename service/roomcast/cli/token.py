"""`roomcast token`: prints a signed token for trials."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from roomcast.cli.arguments import (
    Subparsers,
    UsageError,
    add_command,
    json_object,
    json_value,
    text,
    whole,
)
from roomcast.config import ConfigError, TokenConfig, config_path, load
from roomcast.config.options import BY_KEY

__all__ = ["add"]


if TYPE_CHECKING:
    from roomcast.auth.keys import SigningKey

TOKEN_TTL_S_MAX: Final = 10 * 366 * 86_400

_EXAMPLES: Final = """\
examples:
  roomcast token --user ann
  roomcast token --user ann --info '{"name":"Ann"}' --ttl 600
  roomcast token --user ann --channel news             a subscription token
  roomcast token --user ann --claims '{"caps":[{"channels":["news"],"allow":["sub","pub"]}]}'
  roomcast token --user ann --private-key key.pem --kid 2026-11

Signed with client.token.hmac_secret_key (HS256), a token for a channel with that of
client.subscription_token if it is enabled; without a configuration, with the key of `roomcast dev`.
With --private-key: RS256 for an RSA key, ES256, ES384 or ES512 by the curve of an EC key, EdDSA for
an Ed25519 key.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast token`."""
    parser = add_command(
        commands, "token", token, "print a signed token for trying things out", _EXAMPLES
    )
    parser.add_argument(
        "--user", type=text, required=True, metavar="U", help='who it is for ("" = anonymous)'
    )
    parser.add_argument(
        "--channel", type=text, metavar="C", help="make it a subscription token for this channel"
    )
    parser.add_argument(
        "--ttl",
        type=whole(0, TOKEN_TTL_S_MAX),
        default=3600,
        metavar="S",
        help="seconds it is good for; 0 = for ever (default: 3600)",
    )
    parser.add_argument(
        "--info", type=json_value, metavar="JSON", help="what others see of this user"
    )
    parser.add_argument(
        "--claims",
        type=json_object,
        metavar="JSON",
        help="an object with further claims: caps, subs, meta, …",
    )
    parser.add_argument(
        "--private-key",
        metavar="FILE",
        help="sign with this key (PEM, no password), not with the secret",
    )
    parser.add_argument(
        "--kid",
        type=text,
        default="",
        metavar="K",
        help="name of the key, as in the JWK set that has it",
    )
    parser.add_argument(
        "--json", action="store_true", help="print an object: token, user, channel, expires_at"
    )


def token(arguments: argparse.Namespace) -> int:
    """Prints a token. Raises ConfigError and UsageError."""
    config = load(arguments.config, os.environ, demo=True)
    client = config.client
    configured = client.token if arguments.channel is None else client.token_of_subscriptions
    table = "client.token" if configured is client.token else "client.subscription_token"
    key = _signing_key(arguments, configured, table)
    from roomcast.auth.verifier import Chosen, sign_connection, sign_subscription

    now_s = int(time.time())
    chosen: Chosen = {
        "audience": configured.audience,
        "issuer": configured.issuer,
        "user_id_claim": configured.user_id_claim,
        "now_s": now_s,
        "kid": arguments.kid,
        "claims": arguments.claims,
    }
    if arguments.channel is None:
        signed = sign_connection(arguments.user, key, arguments.ttl, arguments.info, **chosen)
    else:
        signed = sign_subscription(
            arguments.user, arguments.channel, key, arguments.ttl, arguments.info, **chosen
        )
    if arguments.json:
        answer = {
            "token": signed,
            "user": arguments.user,
            "channel": arguments.channel,
            "expires_at": now_s + arguments.ttl if arguments.ttl else None,
        }
        print(json.dumps({name: value for name, value in answer.items() if value is not None}))
    else:
        print(signed)
    return 0


def _signing_key(
    arguments: argparse.Namespace, configured: TokenConfig, table: str
) -> str | SigningKey:
    """The private key of the arguments, else the secret of the table. Raises ConfigError and
    UsageError.
    """
    if arguments.private_key is not None:
        from roomcast.auth.keys import KeyRefused, private_key

        try:
            return private_key(Path(arguments.private_key).read_bytes())
        except KeyRefused as error:
            raise UsageError(f"--private-key: {error}") from error
    secret = configured.hmac_secret_key
    option = BY_KEY[f"{table}.hmac_secret_key"]
    if not secret:
        raise ConfigError(f"{option.key} is not set (nor {option.variable}): nothing to sign with")
    if config_path(arguments.config, os.environ) is None and option.variable not in os.environ:
        print(
            "roomcast: no key is configured; signed with the one of `roomcast dev`", file=sys.stderr
        )
    return secret
