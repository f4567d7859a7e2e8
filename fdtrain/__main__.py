"""``python -m fdtrain``."""

import sys

from fdtrain.commands.entry import main

sys.exit(main())
