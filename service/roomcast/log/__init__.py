"""③ The channel log in DynamoDB: items, rules, appends in turns, history, idempotency."""
