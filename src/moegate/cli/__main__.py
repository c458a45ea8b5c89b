"""`python -m moegate.cli` is `moegate`."""

from moegate.cli.shell import main

main()
