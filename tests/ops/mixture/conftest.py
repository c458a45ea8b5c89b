"""Lets the tests of the mixture import their cases and oracle, which lie beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
