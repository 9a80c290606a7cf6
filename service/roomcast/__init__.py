"""roomcast: real-time WebSocket channels over DynamoDB, SNS and SQS.

This module imports nothing, because the stream Lambda loads it.
"""

__version__ = "0.1.0"
