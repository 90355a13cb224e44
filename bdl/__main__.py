"""`python -m bdl` is the `bdl` command, but loads Keras first, as any import from `bdl` does."""

from bdl_cli import main

if __name__ == "__main__":
    main()
