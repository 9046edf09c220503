"""`python -m examples.nyc_flights` is `make demo`. What it needs takes seconds to load; Ctrl-C in them is a word too."""

import sys

try:
    from examples.nyc_flights.demo import main

    main()
except KeyboardInterrupt:
    print("\nStopped. Begin again with: make demo")
    sys.exit(130)
