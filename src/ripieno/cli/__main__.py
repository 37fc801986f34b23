"""`python -m ripieno.cli`, as torchrun, Slurm and a local worker start it."""

from ripieno.cli import main

if __name__ == "__main__":
    main()
