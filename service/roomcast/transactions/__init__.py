"""What an application imports to publish in its own DynamoDB transaction. docs/transactions.md.

This room needs only the standard library: the application brings its own client of DynamoDB,
boto3's or aioboto3's, and need not install the server's dependencies.
"""

from __future__ import annotations

from roomcast.transactions.channels import Channels, Positions
from roomcast.transactions.conversation import NothingWritten, OutcomeUnknown
from roomcast.transactions.message import InvalidMessage, Message

__all__ = [
    "Channels",
    "InvalidMessage",
    "Message",
    "NothingWritten",
    "OutcomeUnknown",
    "Positions",
]
