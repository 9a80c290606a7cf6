"""Commands of `roomcast` that need more than a few lines: arguments come from service/cli.py, which prints what fails."""
