"""`python -m bdl` is the `bdl` command."""

from bdl.cli import main

if __name__ == "__main__":
    main()
