"""A sample of the kill-point sweep; `make survive` runs the whole."""

import shutil
import subprocess
import sys
from pathlib import Path

SWEEP = Path(__file__).with_name("survive.py")


def test_killed_anywhere_and_resumed_to_the_same_files():
    done = subprocess.run([sys.executable, SWEEP, "--kills", "20"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; 0 wrong." in done.stdout
    assert shutil.which("strace") is None or "fsync" in done.stdout
