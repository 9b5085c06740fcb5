"""`python -m vanilla_transformer`, which is also what `torchrun -m` starts."""

from .cli import main

# A data worker that is spawned imports this file under another name.
if __name__ == "__main__":
    main()
