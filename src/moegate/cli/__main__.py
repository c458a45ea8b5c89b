"""`python -m moegate.cli` is `moegate`."""

from moegate.cli.app import main

main()
