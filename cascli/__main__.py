"""`python -m cascli`."""

from cascli.cli.app import main

main()
