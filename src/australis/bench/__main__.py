"""`python -m australis.bench`."""

import sys

from australis.bench import main

sys.exit(main(sys.argv[1:]))
