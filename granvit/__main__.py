"""`python -m granvit`, which is also what `torchrun -m granvit` starts."""

from granvit.cli import main

if __name__ == "__main__":
    main()
