"""Lets the tests of the Ascend operators import their goldens, which lie beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
