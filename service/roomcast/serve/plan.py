"""Plans one process from its configuration and its machine, before anything is started."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from roomcast.auth.jwks import JwksKeys
from roomcast.auth.jwks_endpoint import fetch_jwks
from roomcast.auth.verifier import TokenVerifier
from roomcast.config import Config, ConfigError
from roomcast.ec2.instance_metadata import InstanceMetadata
from roomcast.hooks.calls import Hooks, load_hooks
from roomcast.serve.descriptors import Places, places, widened
from roomcast.system import SystemClock, new_nonce, random_fraction

__all__ = ["StartPlan", "planned"]

# Characters of a host name in ids. The ids are for people and for AWS resource names: with prefix
# and nonces, a queue's name must stay within the 80 characters of SQS.
_HOST_CHARS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class StartPlan:
    """`config`: the configuration, with this process's own number of places.

    `machine`: None outside EC2.

    `host`: the machine's instance id, or else its host name. `keys`: None if no JWKS endpoint is
    configured.
    """

    config: Config
    hooks: Hooks
    places: Places
    machine: InstanceMetadata | None
    host: str
    node_id: str
    clock: SystemClock
    keys: JwksKeys | None
    verifier: TokenVerifier

    def new_id(self) -> str:
        """A new id for a lease of this process, never used before."""
        return _node_id(self.host)


def planned(config: Config, machine: InstanceMetadata | None) -> StartPlan:
    """The plan of this process. Raises its limit on descriptors. Raises ConfigError."""
    if not config.aws.topic_arn:
        raise ConfigError(
            "aws.topic_arn is not set: give the ARN of the SNS topic that connects the instances"
        )
    hooks = load_hooks(config.hooks)
    host = socket.gethostname() if machine is None else machine.id
    clock = SystemClock()
    room = places(widened(), config.client.connection_limit)
    config = replace(config, client=replace(config.client, connection_limit=room.clients))
    keys = None
    if endpoint := config.client.token.jwks_public_endpoint:
        keys = JwksKeys(partial(fetch_jwks, endpoint), clock, random_fraction)
    verifier = TokenVerifier(config.client.token, insecure=config.client.insecure, jwks=keys)
    return StartPlan(config, hooks, room, machine, host, _node_id(host), clock, keys, verifier)


def _node_id(host: str) -> str:
    """An id that is unique for each start of each process: the host's name, then a nonce."""
    name = re.sub(r"[^a-z0-9]+", "-", host.lower().partition(".")[0]).strip("-")[:_HOST_CHARS_MAX]
    return f"{name or 'node'}-{new_nonce()}"
