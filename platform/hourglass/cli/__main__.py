"""`python -m hourglass.cli` is `hourglass`."""

from hourglass.cli import main

main()
