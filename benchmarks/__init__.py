"""What a maintainer reruns; each script runs by its path, and `research` imports the shared modules from here."""
