import sys
from pathlib import Path

# tiny_detectors.py and the server processes lie beside the tests that use them.
sys.path.insert(0, str(Path(__file__).parent))
