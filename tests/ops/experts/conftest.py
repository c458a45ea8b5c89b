"""Lets the tests of the experts import their cases and oracles, which lie beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
