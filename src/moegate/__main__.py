"""`python -m moegate` is `moegate`."""

from moegate.cli import main

main()
