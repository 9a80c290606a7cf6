"""One file a port: DynamoDB, SNS and SQS through aioboto3, and an in-memory twin of each."""
