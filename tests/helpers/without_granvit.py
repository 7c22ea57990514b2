"""Runs a script where granvit cannot be imported, wherever it may be installed.

python -I without_granvit.py SCRIPT WORD...: as `python SCRIPT WORD...`.
"""

import importlib.util
import runpy
import sys


class NoGranvit:
    """Refuses the package under test, wherever it may be found."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "granvit":
            raise ModuleNotFoundError(name, name=name)
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, NoGranvit())
    try:
        importlib.util.find_spec("granvit")
        sys.exit("granvit can be imported here")
    except ModuleNotFoundError:
        pass
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
