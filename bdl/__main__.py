"""`python -m bdl` is the `bdl` command, but loads Keras first, as any import from `bdl` does.

A `.keras` file with bdl's layers needs no more than `import bdl`, since that registers their classes with Keras, which
imports no other package for a file. `python -m bdl_cli` starts without.
"""

from bdl_cli import main

if __name__ == "__main__":
    main()
