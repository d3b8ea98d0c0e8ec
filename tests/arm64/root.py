"""An aarch64 Debian root that this machine can enter: the kernel hands its programs to an emulator.

Wheels are fetched from here, by pip with this machine's settings, and installed over there without an index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("qemu-aarch64-static", "mmdebstrap", "unshare", "chroot")
PACKAGES = "python3,python3-venv"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
FORMAT = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
PARTS = ("tests", "models", "deploy", "systemd", "pyproject.toml")
"""What the tests read beside the installed package; the package itself stays outside, so that only the wheel is run."""
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))
"""Wheels that run with glibc 2.36, Debian 12's."""
ENTER = """
set -e
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount -t tmpfs tmpfs {root}/tmp
mount --bind {wheels} {root}/mnt
exec chroot {root} /usr/bin/env -C /src "$@"
"""


class Root:
    """A Debian root for aarch64 with the project in `/venv` and its tests in `/src`."""

    def __init__(self, folder: Path) -> None:
        self.root, self.wheels = folder / "base", folder / "wheels"
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        if not self.root.is_dir():
            call("mmdebstrap", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(self.root))
        source = self.root / "src"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        for name in PARTS:
            call("cp", "-a", str(REPOSITORY / name), str(source))

    def fetch(self) -> str:
        """Build the project's wheel, fetch those that it needs, and return the former's name."""
        shutil.rmtree(self.wheels, ignore_errors=True)
        pip = (sys.executable, "-m", "pip")
        call(*pip, "wheel", "-qq", "--no-deps", "-w", str(self.wheels), str(REPOSITORY))
        [wheel] = self.wheels.glob("edge_scanner-*.whl")
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        only = ("--only-binary=:all:", "--python-version", "3.11", *platforms)
        call(*pip, "download", "-qq", *only, "-d", str(self.wheels), f"{wheel}[cpu,test]")
        return wheel.name

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the root, in mounts of its own that end with it."""
        script = ENTER.format(root=self.root, wheels=self.wheels)
        own = {
            "PATH": "/venv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
            "PYTHONDONTWRITEBYTECODE": "",
        }  # fmt: skip
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **own},
        )  # fmt: skip

    def sh(self, *command: str) -> str:
        done = self.run(*command)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout.strip()


@contextmanager
def emulation() -> Iterator[None]:
    """Let the kernel run aarch64 programs, unless it does already."""
    if not (BINFMT / "register").exists():
        call("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    entry = BINFMT / "qemu-aarch64"
    if entry.exists():
        yield
        return
    (BINFMT / "register").write_bytes(FORMAT.read_bytes())
    try:
        yield
    finally:
        entry.write_text("-1")


def call(*command: str) -> None:
    subprocess.run(command, check=True)
