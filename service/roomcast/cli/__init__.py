"""The `roomcast` command, one module a command."""
