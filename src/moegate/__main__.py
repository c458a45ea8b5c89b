"""`python -m moegate` is `moegate`."""

from moegate.cli.shell import main

main()
