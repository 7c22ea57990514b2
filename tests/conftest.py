import sys
from pathlib import Path

# tiny_model.py is shared by the tests of the model, of its training and of prediction.
sys.path.insert(0, str(Path(__file__).parent))
