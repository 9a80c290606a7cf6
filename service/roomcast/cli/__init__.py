"""The `roomcast` command, with one module for each subcommand."""
