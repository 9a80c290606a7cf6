"""Plans one process from its configuration and its machine, before anything is started."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, replace
from typing import Final

from roomcast.auth.jwks_sets import JwksSets, jwks_sets
from roomcast.auth.ports import Verifier
from roomcast.auth.verifier import verifier_of
from roomcast.aws.signing import HttpSigner
from roomcast.config import Config, ConfigError, TracingConfig
from roomcast.ec2.instance_metadata import InstanceMetadata
from roomcast.ecs.rules import FARGATE_STOP_S, Task, drain_max_s
from roomcast.hooks.calls import Hooks, load_hooks
from roomcast.hooks.over_http import BackEnds, connections_max, with_http_hooks
from roomcast.observe.ports import Tracing
from roomcast.observe.spans import NO_TRACER
from roomcast.serve.certificates import Certificate, certificates_of
from roomcast.serve.descriptors import Places, places, widened
from roomcast.serve.supervisor import DRAIN_JITTER
from roomcast.system import SystemClock, new_nonce, random_fraction

__all__ = ["StartPlan", "planned"]

# Characters of a host name in ids. The ids are for people and for AWS resource names: with prefix
# and nonces, a queue's name must stay within the 80 characters of SQS.
_HOST_CHARS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class StartPlan:
    """`config`: the configuration, with this process's own number of places.

    `machine`: None outside EC2, and in a task. `instance`: the id of the task or of the machine, by
    which the reaper knows what ended with it; "" = neither is known.

    `host`: the same, or else the host name. `keys`: None if no JWKS endpoint is configured.
    `tracing`: None if it is off. `back_ends`: those that hooks over HTTP ask.

    `certificate`: of the port of clients, `internal_certificate`: of the internal one; None = that
    port has no TLS.
    """

    config: Config
    hooks: Hooks
    places: Places
    machine: InstanceMetadata | None
    task: Task | None
    host: str
    node_id: str
    clock: SystemClock
    keys: JwksSets | None
    tracing: Tracing | None
    verifier: Verifier
    back_ends: BackEnds
    certificate: Certificate | None = None
    internal_certificate: Certificate | None = None

    @property
    def instance(self) -> str:
        return "" if self.machine is None and self.task is None else self.host

    def new_id(self) -> str:
        """A new id for a lease of this process, never used before."""
        return _node_id(self.host)


def planned(
    config: Config, machine: InstanceMetadata | None, task: Task | None = None
) -> StartPlan:
    """The plan of this process. Raises its limit on descriptors. Raises ConfigError."""
    if not config.aws.topic_arn:
        raise ConfigError(
            "aws.topic_arn is not set: give the ARN of the SNS topic that connects the instances"
        )
    if task is not None:
        _check_drain(config, task)
    hooks = load_hooks(config.hooks)
    host = next((each.id for each in (task, machine) if each is not None), socket.gethostname())
    clock = SystemClock()
    certificate, internal_certificate = certificates_of(config, clock)
    room = places(
        widened(),
        config.client.connection_limit,
        has_internal_port=bool(config.server.internal_port),
        back_ends=connections_max(config),
    )
    config = replace(config, client=replace(config.client, connection_limit=room.clients))
    keys = jwks_sets(config.client, clock, random_fraction)
    verifier = verifier_of(config.client, insecure=config.client.insecure, jwks=keys)
    node_id = _node_id(host)
    tracing = _tracing(config.tracing, node_id)
    back_ends = BackEnds(
        random_fraction,
        signer=HttpSigner() if any(each.aws_iam for each in config.proxies.all_on()) else None,
        tracer=NO_TRACER if tracing is None else tracing.tracer,
    )
    hooks = with_http_hooks(hooks, config, back_ends)
    return StartPlan(
        config,
        hooks,
        room,
        machine,
        task,
        host,
        node_id,
        clock,
        keys,
        tracing,
        verifier,
        back_ends,
        certificate,
        internal_certificate,
    )


def _tracing(config: TracingConfig, node_id: str) -> Tracing | None:
    """What records and exports spans; None = it is off. Raises ConfigError."""
    if not config.enabled:
        return None
    try:
        # It is no dependency, and its import takes a while.
        from roomcast.observe.otel import OtelTracing
    except ImportError as error:
        raise ConfigError(
            f"tracing.enabled needs the extra otel: pip install 'roomcast[otel]' ({error})"
        ) from None
    try:
        return OtelTracing(
            node=node_id,
            sample_ratio=config.sample_ratio,
            channel_names=config.channel_names,
            random=random_fraction,
        )
    except ValueError as error:
        raise ConfigError(f"tracing: OpenTelemetry refuses a variable OTEL_…: {error}") from error


def _check_drain(config: Config, task: Task) -> None:
    """Raises ConfigError when the task is killed before its clients are closed."""
    drain_s, drain_s_max = config.node.drain_s, drain_max_s(task, DRAIN_JITTER)
    if drain_s_max is not None and drain_s > drain_s_max:
        raise ConfigError(
            f"node.drain_s must be at most {drain_s_max:g} on Fargate, which kills a task "
            f"{FARGATE_STOP_S:g} s after SIGTERM; found {drain_s:g}"
        )


def _node_id(host: str) -> str:
    """An id that is unique for each start of each process: the host's name, then a nonce."""
    name = re.sub(r"[^a-z0-9]+", "-", host.lower().partition(".")[0]).strip("-")[:_HOST_CHARS_MAX]
    return f"{name or 'node'}-{new_nonce()}"
