"""The configuration: the options, and how they are read.

`load` builds a `Config` from a file and the environment. `ConfigError` says in one line what is
wrong.
"""

from __future__ import annotations

from roomcast.config.consumer_options import (
    CONSUMER_OPTIONS,
    QUEUES_MAX,
    AwsSqsConfig,
    ConsumerConfig,
    PublicationDataModeConfig,
)
from roomcast.config.declaration import MASK, Option, format_duration
from roomcast.config.loading import config_path, load
from roomcast.config.messages import ConfigError
from roomcast.config.options import (
    DEV_SECRET,
    HOOK_TIMEOUT_S_MAX,
    MESSAGE_SIZE_LIMIT_MAX,
    OPTIONS,
    PROCESSES_MAX,
    AdminConfig,
    AwsConfig,
    ClientConfig,
    Config,
    HooksConfig,
    HttpApiConfig,
    LogConfig,
    NodeConfig,
    ServerConfig,
    SubscriptionTokenConfig,
    TlsConfig,
    TokenConfig,
    TracingConfig,
    WebSocketConfig,
    dev_config,
)
from roomcast.config.proxy_checks import aws_service
from roomcast.config.proxy_options import (
    ProxiesConfig,
    ProxyConfig,
    ProxyHttpConfig,
    StatusTransform,
)
from roomcast.config.rendering import effective, effective_toml, reference

__all__ = [
    "CONSUMER_OPTIONS",
    "DEV_SECRET",
    "HOOK_TIMEOUT_S_MAX",
    "MASK",
    "MESSAGE_SIZE_LIMIT_MAX",
    "OPTIONS",
    "PROCESSES_MAX",
    "QUEUES_MAX",
    "AdminConfig",
    "AwsConfig",
    "AwsSqsConfig",
    "ClientConfig",
    "Config",
    "ConfigError",
    "ConsumerConfig",
    "HooksConfig",
    "HttpApiConfig",
    "LogConfig",
    "NodeConfig",
    "Option",
    "ProxiesConfig",
    "ProxyConfig",
    "ProxyHttpConfig",
    "PublicationDataModeConfig",
    "ServerConfig",
    "StatusTransform",
    "SubscriptionTokenConfig",
    "TlsConfig",
    "TokenConfig",
    "TracingConfig",
    "WebSocketConfig",
    "aws_service",
    "config_path",
    "dev_config",
    "effective",
    "effective_toml",
    "format_duration",
    "load",
    "reference",
]
