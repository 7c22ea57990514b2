import sys
from pathlib import Path

# The tests here share tiny_stage.py with the scripts that they start as child processes.
sys.path.insert(0, str(Path(__file__).parent))
