"""`python -m australis`: the same as the command `australis`."""

from australis.cli import main

main()
