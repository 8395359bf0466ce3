"""`python -m sgl_router`."""

import sys

from sgl_router.cli.main import main

sys.exit(main())
