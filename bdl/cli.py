"""The `bdl` command by an older name: it is `bdl_cli`, a package beside this one that starts without a backend."""

from bdl_cli import app, main

__all__ = ["app", "main"]
