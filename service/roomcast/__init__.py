"""roomcast: real-time WebSocket channels over DynamoDB, SNS and SQS. Imports nothing: the stream Lambda loads it."""

__version__ = "0.1.0"
