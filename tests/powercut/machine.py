"""A virtual machine whose power can be cut: the host's files read-only, and one disk with a volatile cache.

The guest sees the host's root over 9p, so it runs the very interpreter and packages that run this script; nothing is
installed. Its ext4 disk lies on a drive that promises nothing before a flush: what was written since the last one is
kept, lost, or kept in part and out of order.
"""

from __future__ import annotations

import compileall
import lzma
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mkfs.ext4": "e2fsprogs",
    "depmod": "kmod",
    "cpio": "cpio",
    "cc": "gcc",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "9p", "9pnet_virtio")
ENV = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
DISK_MB = 192
BLOCK = 4096
SECTOR = 512
FLUSH, FUA = 1, 2

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /dev /host
$b mount -t proc proc /proc
for m in $($b cat /modules/order); do $b insmod /modules/$m; done
$b mount -t 9p -o trans=virtio,ro,cache=loose,msize=262144,version=9p2000.L host /host
$b mount -t proc proc /host/proc
$b mount -t devtmpfs dev /dev
$b mount -t devtmpfs dev /host/dev
$b mkdir -p /host/dev/shm /host/dev/data
$b mount -t tmpfs tmpfs /host/dev/shm
$b mount -t ext4 /dev/vda /host/dev/data || echo "@ unmountable"
$b chroot /host /usr/bin/env -i PATH=/usr/bin:/bin HOME=/dev/shm TMPDIR=/dev/shm PYTHONDONTWRITEBYTECODE=1 \\
    LD_PRELOAD=$SHIM {python} {guest} $MODE /dev/data
$b poweroff -f
"""

SHIM = """
int fsync(int fd) { return 0; }
int fdatasync(int fd) { return 0; }
int syncfs(int fd) { return 0; }
int msync(void *at, unsigned long length, int flags) { return 0; }
int sync_file_range(int fd, long offset, long length, unsigned flags) { return 0; }
void sync(void) {}
"""


def missing() -> str | None:
    """Return the sentence that says what this computer lacks; None when the machine can run here."""
    lacking = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool, path=ENV["PATH"]) is None})
    if lacking:
        return f"power cuts need a Debian computer with the packages {', '.join(lacking)} (apt-get install them)."
    return None


@dataclass(frozen=True, slots=True)
class Parts:
    """What every machine boots from."""

    kernel: Path
    initrd: Path
    shim: Path

    @classmethod
    def make(cls, folder: Path, sources: Path) -> Parts:
        """Fetch Debian's kernel and busybox, copy the sources, build the initial file system and the library."""
        for name in ("edge_scanner", "tests"):  # a copy, so that an edit meanwhile cannot change what is tested
            shutil.copytree(sources / name, folder / "sources" / name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(folder / "sources", quiet=1)
        guest = folder / "sources/tests/powercut/guest.py"
        shim, root = folder / "no_fsync.so", folder / "root"
        (folder / "no_fsync.c").write_text(SHIM)
        _do("cc", "-shared", "-fPIC", "-w", "-o", shim, folder / "no_fsync.c")
        told = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=True)
        found = re.search(r"Depends: linux-image-(\S+)", told.stdout)
        if found is None:
            raise RuntimeError("apt-cache knows no linux-image-amd64: run apt-get update on a Debian computer")
        version = found[1]
        _do(
            "apt-get",
            "download",
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            f"linux-image-{version}",
            "busybox-static",
            cwd=folder,
        )
        for package in folder.glob("*.deb"):
            _do("dpkg-deb", "-x", package, folder / package.name.partition("_")[0])
        kernel = folder / f"linux-image-{version}"
        _do("depmod", "-b", kernel, version)
        (root / "bin").mkdir(parents=True)
        shutil.copy(folder / "busybox-static/bin/busybox", root / "bin")
        (root / "modules").mkdir()
        order = _with_needed(kernel / "lib/modules" / version / "modules.dep", MODULES)
        for module in order:
            shutil.copy(kernel / "lib/modules" / version / module, root / "modules")
        (root / "modules/order").write_text("\n".join(Path(module).name for module in order))
        (root / "init").write_text(INIT.format(python=sys.executable, guest=guest))
        (root / "init").chmod(0o755)
        packed = (kernel / f"boot/vmlinuz-{version}").read_bytes()
        elf = lzma.LZMADecompressor().decompress(packed[packed.index(b"\xfd7zXZ\0") :])
        (folder / "vmlinux").write_bytes(elf)  # unpacked here: the guest would take ten seconds
        _pack(root, folder / "initrd")
        return cls(folder / "vmlinux", folder / "initrd", shim)


class Machine:
    """Runs the guest on a disk of its own; `folder` is the caller's to make and to remove."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self._parts = parts
        self.console = folder / "console"
        self._disk, self._before, self._log = folder / "disk.img", folder / "before.img", folder / "drive.log"

    def new_disk(self) -> None:
        """Put an empty ext4 file system in."""
        self._disk.unlink(missing_ok=True)
        with self._disk.open("wb") as file:
            file.truncate(DISK_MB << 20)
        _do("mkfs.ext4", "-q", "-F", self._disk)

    def boot(self, mode: str, *, fsync: bool = True) -> subprocess.Popen[bytes]:
        """Switch on; the guest's words go to the file `console`. Kill the process to cut the power."""
        _do("cp", "--sparse=always", self._disk, self._before)
        self._log.write_bytes(b"")
        drive = f"driver=blklogwrites,node-name=drive,log-sector-size={SECTOR},"
        drive += f"file.driver=file,file.filename={self._disk},log.driver=file,log.filename={self._log}"
        words = f"console=ttyS0 quiet loglevel=0 panic=-1 MODE={mode} SHIM={'' if fsync else self._parts.shim}"
        with self.console.open("wb") as console:
            return subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"),
                    *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
                    *("-kernel", self._parts.kernel, "-initrd", self._parts.initrd, "-append", words),
                    *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
                    *("-blockdev", drive, "-device", "virtio-blk-pci,drive=drive,write-cache=on"),
                ],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def written(self) -> int:
        """Bytes of the log of what reached the drive since it was switched on."""
        return self._log.stat().st_size

    def settle(self, keep: float, rng: random.Random) -> tuple[int, int]:
        """Lose what a drive may lose: each 4 KiB written since the last flush stays with the chance `keep`.

        Returns
        -------
        tuple of int
            Blocks that were still in the drive's cache, and how many of them are lost.
        """
        writes = list(_entries(self._log.read_bytes()))
        flushed = max((n for n, (_, flags, _) in enumerate(writes) if flags & FLUSH), default=-1)
        cached = lost = 0
        with self._before.open("r+b") as image:
            for n, (offset, flags, data) in enumerate(writes):
                for at in range(0, len(data), BLOCK):
                    volatile = n > flushed and not flags & FUA
                    cached += volatile
                    if volatile and rng.random() >= keep:
                        lost += 1
                        continue
                    image.seek(offset + at)
                    image.write(data[at : at + BLOCK])
        self._before.replace(self._disk)
        return cached, lost


def _pack(root: Path, archive: Path) -> None:
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with archive.open("wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), stdout=out, check=True)


def _with_needed(dependencies: Path, names: tuple[str, ...]) -> list[str]:
    """Return the files of some modules, each after those that it needs."""
    needs = dict(re.findall(r"^(\S+):(.*)$", dependencies.read_text(), re.MULTILINE))
    by_name = {Path(file).stem: file for file in needs}
    order: list[str] = []
    for name in names:
        file = by_name[name]
        for needed in [*reversed(needs[file].split()), file]:
            if needed not in order:
                order.append(needed)
    return order


def _entries(log: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (byte offset, flags, data) of each whole request in a log of QEMU's `blklogwrites`."""
    at = SECTOR
    while at + SECTOR <= len(log):
        sector, count, flags, _ = struct.unpack_from("<4Q", log, at)
        end = at + SECTOR + count * SECTOR
        if not (count or flags) or end > len(log):
            return
        yield sector * SECTOR, flags, log[at + SECTOR : end]
        at = end


def _do(*command: object, cwd: Path | None = None) -> None:
    subprocess.run(list(map(str, command)), cwd=cwd, env=ENV, check=True, stdout=subprocess.DEVNULL)
