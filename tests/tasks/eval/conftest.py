"""Lets the tests of this folder import the data of their oracle."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
