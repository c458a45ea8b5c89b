"""`python -m moegate.cli` is `moegate`."""

from moegate.cli import main

main()
