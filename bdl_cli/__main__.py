"""`python -m bdl_cli` is the `bdl` command."""

from bdl_cli import main

if __name__ == "__main__":
    main()
