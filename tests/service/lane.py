"""The service in a booted Debian container: install, scan, hang, kill, stop, upgrade, uninstall; writes a record.

    python tests/service/lane.py --record tests/records/service.md

Needs root, systemd-container, mmdebstrap and, the first time, a Debian mirror; `--rig DIR` keeps root and wheels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,procps"
PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOTED = "systemd.log_target=console"
UNIT = "edge-scanner.service"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/lane.conf"
RUN = "/opt/edge-scanner/current/bin/edge-scanner run --config /etc/edge-scanner/config.toml"
AREA = "--x-mm 0 --y-mm 0 --width-mm 1.5 --height-mm 1"
LARGE = "--x-mm 0 --y-mm 0 --width-mm 4 --height-mm 3"
SMALL = {"width_px": 612, "height_px": 512, "pixel_size_um": 1.0}
SLOW = "--set sim.clock=real --set stage.speed_mm_s=5"

DEADEN = """
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as old, zipfile.ZipFile(sys.argv[2], "w") as new:
    for name in old.namelist():
        data = old.read(name).replace(b"0.99.0", b"0.99.1")
        data = data.replace(b"    limit_native_threads()", b"    raise SystemExit(1)", 1)
        new.writestr(name.replace("0.99.0", "0.99.1"), data)
"""
"""Makes a wheel of a version whose daemon ends at once."""


class Rig:
    """A base root and two wheelhouses (this version, the next one), made once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.wheels, self.next = folder / "wheels", folder / "next"
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        base = self.folder / "base"
        if not base.is_dir():
            call("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(base))
        shutil.rmtree(self.root, ignore_errors=True)
        call("cp", "-a", "--reflink=auto", str(base), str(self.root))
        if not self.wheels.is_dir():
            call(sys.executable, "-m", "pip", "wheel", "-q", "-w", str(self.wheels), f"{REPOSITORY}[cpu]")
        for old in self.wheels.glob("edge_scanner-*"):
            old.unlink()
        self._wheel(None, self.wheels)
        shutil.rmtree(self.next, ignore_errors=True)
        call("cp", "-al", str(self.wheels), str(self.next))
        self._wheel("0.99.0", self.next)

    def _wheel(self, version: str | None, out: Path) -> None:
        tree = self.folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        for name in ("edge_scanner", "hil_sim", "pyproject.toml", "README.md", "LICENSE"):
            call("cp", "-a", str(REPOSITORY / name), str(tree))
        if version is not None:
            for name in ("pyproject.toml", "edge_scanner/__init__.py"):
                path = tree / name
                path.write_text(re.sub(r'(version(?:__)? = )"[^"]*"', rf'\1"{version}"', path.read_text()))
        call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(tree))


class Container:
    """A booted systemd; `sh` runs a command in it as root."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def __enter__(self) -> Container:
        command = ["systemd-nspawn", "-D", str(self._rig.root), "--register=no", "--keep-unit", "--private-network"]
        for path, where in ((REPOSITORY, "/src"), (self._rig.wheels, "/wheels"), (self._rig.next, "/next")):
            command.append(f"--bind-ro={path}:{where}")
        log = (self._rig.folder / "boot.log").open("wb")
        self._nspawn = subprocess.Popen(
            [*command, "-b", BOOTED], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        self._leader = wait_for(self._find_leader, "systemd in the container")
        wait_for(lambda: self.sh("systemctl is-system-running", check=False)[1] in ("running", "degraded"), "boot")
        return self

    def __exit__(self, *_: object) -> None:
        self.sh("systemctl poweroff", check=False)
        try:
            self._nspawn.wait(30)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()

    def sh(self, command: str, *, check: bool = True, timeout_s: float = 300) -> tuple[int, str]:
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "--", "/bin/sh", "-c", command],
            capture_output=True, text=True, timeout=timeout_s, env={"PATH": PATH},
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.returncode, (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip()

    def show(self, name: str) -> str:
        return self.sh(f"systemctl show {UNIT} -p {name} --value")[1]

    def ctl(self, words: str, *, user: str = "nurse", check: bool = True) -> Any:
        code, said = self.sh(f"runuser -u {user} -- edge-scanner ctl {words}", check=check)
        return json.loads(said) if code == 0 and "--json" in words else (code, said)

    def drop_in(self, more: str, service: str = "") -> None:
        text = f"[Service]\\nExecStart=\\nExecStart={RUN} {more}\\n{service}"
        self.sh(f"mkdir -p {Path(DROP_IN).parent} && printf '{text}' > {DROP_IN} && systemctl daemon-reload")
        self.sh(f"systemctl reset-failed {UNIT}; systemctl restart {UNIT}")

    def _find_leader(self) -> int | None:
        for line in subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines():
            pid, parent, *args = line.split(None, 2)
            if parent == str(self._nspawn.pid) and BOOTED in " ".join(args):
                return int(pid)
        return None


class Record:
    """Steps, what was seen, how long it took."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float]] = []
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True
        )
        self._tree = told.stdout.strip()

    def step(self, name: str, do: Callable[[], str]) -> None:
        began_s = time.monotonic()
        seen = do()
        self.rows.append((name, seen, time.monotonic() - began_s))
        sys.stdout.write(f"{name}: {seen} ({self.rows[-1][2]:.1f} s)\n")
        sys.stdout.flush()

    def write(self, path: Path, systemd: str) -> None:
        lines = [
            "# The service in a booted container",
            "",
            f"`make service`, {datetime.now(UTC):%Y-%m-%d}, tree {self._tree}, {platform.machine()}, "
            f"{os.cpu_count()} cores (shared), Debian 12 root in systemd-nspawn, {systemd}, no network.",
            "",
            "| step | seen | s |",
            "|---|---|---|",
            *(f"| {name} | {seen} | {took:.1f} |" for name, seen, took in self.rows),
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def call(*command: str) -> None:
    subprocess.run(command, check=True)


def wait_for(true: Callable[[], Any], what: str, within_s: float = 120) -> Any:
    deadline_s = time.monotonic() + within_s
    while not (got := true()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {within_s} s for {what}")
        time.sleep(0.1)
    return got


def check(true: object, seen: object) -> None:
    if not true:
        raise AssertionError(seen)


class Lane:
    """The steps, in order."""

    def __init__(self, box: Container) -> None:
        self._box = box
        self._scan_id = ""

    def install(self) -> str:
        said = self._box.sh("/src/deploy/install.sh --wheelhouse /wheels")[1]
        check(self._box.show("ActiveState") == "active", said)
        for key, value in SMALL.items():  # tiles small enough for a machine that emulates the optics too
            self._box.sh(f"sed -i 's/^{key} = [^ ]*/{key} = {value}/' /etc/edge-scanner/config.toml")
        self._box.sh("useradd -m -G edge-scanner nurse && useradd -m stranger")
        return self._box.sh("edge-scanner --version")[1] + ", active"

    def again(self) -> str:
        before = self._box.sh("sha256sum /etc/edge-scanner/config.toml /etc/edge-scanner/keys/server.key")[1]
        self._box.sh("/src/deploy/install.sh --wheelhouse /wheels")
        check(
            before == self._box.sh("sha256sum /etc/edge-scanner/config.toml /etc/edge-scanner/keys/server.key")[1], ""
        )
        return "configuration and key unchanged, active: " + self._box.show("ActiveState")

    def exposure(self) -> str:
        said = self._box.sh(f"systemd-analyze security --no-pager {UNIT}")[1]
        level = float(re.search(r"exposure level.*: ([\d.]+)", said).group(1))  # type: ignore[union-attr]
        check(level <= 1.5, said)
        return f"`systemd-analyze security` {level} (at most 1.5)"

    def ready(self) -> str:
        self._box.sh(f"systemctl stop {UNIT}")
        began_s = time.monotonic()
        self._box.sh(f"systemctl start {UNIT}")
        took_s = time.monotonic() - began_s
        state = self._box.ctl("status --json")["state"]  # answered at once: start has waited for READY
        log = self._box.sh(f"journalctl -u {UNIT} -o cat | grep '\"Ready at'")[1].splitlines()
        return f"start took {took_s:.1f} s, then {state}; journal line is JSON: {json.loads(log[-1])['level']}"

    def sockets(self) -> str:
        modes = self._box.sh("stat -c '%a %U:%G' /run/edge-scanner /run/edge-scanner/control.ipc")[1].splitlines()
        check(modes == ["750 edge-scanner:edge-scanner", "660 edge-scanner:edge-scanner"], modes)
        code, said = self._box.ctl("--timeout-s 1 status", user="stranger", check=False)
        check(code == 1, said)
        return f"folder and socket {modes}; a user outside the group gets nothing"

    def scan(self) -> str:
        self._box.ctl("home --wait")
        report = self._box.ctl(f"scan {AREA} --wait --json")
        check(report["outcome"] == "completed", report)
        tiff = self._box.sh(f"stat -c '%s %U %a' {report['paths']['tiff']}")[1]
        return f"{report['outcome']}, {report['tiles']} tiles, TIFF {tiff}, peak {report['peak_rss_mib']:.0f} MiB"

    def curve(self) -> str:
        self._box.drop_in("--set control.endpoint=tcp://127.0.0.1:5566 --set control.events=tcp://127.0.0.1:5567")
        self._box.sh("runuser -u nurse -- edge-scanner keys new ui --keys /home/nurse/keys")
        how = "--endpoint tcp://127.0.0.1:5566 --timeout-s 3 --server-key /etc/edge-scanner/keys/server.key"
        how += " --key /home/nurse/keys/ui.key_secret"
        refused = self._box.ctl(f"{how} status", check=False)
        check(refused[0] == 1 and "does not allow" in refused[1], refused)
        self._box.sh("edge-scanner keys allow ui /home/nurse/keys/ui.key")
        state = self._box.ctl(f"{how} status --json")["state"]
        self._box.sh("edge-scanner keys revoke ui")
        check(self._box.ctl(f"{how} status", check=False)[0] == 1, "a revoked key was let in")
        secret = self._box.sh("stat -c '%a %U' /etc/edge-scanner/keys/server.key_secret")[1]
        return (
            f"TCP with the key from systemd's credential ({secret}): unknown refused, allowed {state}, revoked refused"
        )

    def hang(self) -> str:
        site = self._box.sh("ls -d /opt/edge-scanner/current/lib/python3*/site-packages")[1]
        self._box.sh(
            f"cp /src/tests/service/stuck_driver.py {site}/ && mkdir -p {site}/stuck-1.dist-info && "
            f"printf 'Metadata-Version: 2.1\\nName: stuck\\nVersion: 1\\n' > {site}/stuck-1.dist-info/METADATA && "
            f"printf '[edge_scanner.drivers]\\nstuck = stuck_driver\\n' > {site}/stuck-1.dist-info/entry_points.txt"
        )
        self._box.drop_in(
            "--set stage.driver=stuck --set stage.timeout_s=2 --set camera.timeout_s=1", "WatchdogSec=5\\n"
        )
        self._box.ctl("home --wait")
        before = self._box.show("NRestarts")
        self._box.ctl(f"scan {LARGE}")
        wait_for(lambda: self._box.ctl("status --json")["done"] > 0, "the first tile")
        self._box.sh("touch /run/edge-scanner/stick")
        began_s = time.monotonic()
        wait_for(lambda: self._box.show("NRestarts") > before, "a restart by the watchdog")
        took_s = time.monotonic() - began_s
        wait_for(lambda: self._box.show("ActiveState") == "active", "the restart")
        log = self._box.sh(f"journalctl -u {UNIT} -o cat")[1]
        check("No progress in the thread scan" in log, log[-3000:])
        check("stuck_driver.py" in log, "the stacks at SIGABRT are missing")
        check("Watchdog timeout" in log or "watchdog" in log, log[-3000:])
        return f"the thread was named, the stacks logged, aborted and restarted {took_s:.0f} s after it hung"

    def killed(self) -> str:
        self._box.drop_in(SLOW)
        self._box.ctl("home --wait")
        _, said = self._box.ctl(f"scan {LARGE}")
        self._scan_id = said.split()[-1]
        wait_for(lambda: self._box.ctl("status --json")["durable"] > 0, "a durable tile")
        before = int(self._box.show("NRestarts"))
        self._box.sh(f"systemctl kill -s KILL --kill-who=main {UNIT}")
        wait_for(lambda: int(self._box.show("NRestarts")) > before, "a restart after kill -9")
        wait_for(lambda: self._box.show("ActiveState") == "active", "the restart")
        [entry] = [one for one in self._box.ctl("scans --json") if one["scan_id"] == self._scan_id]
        check(entry["outcome"] is None, entry)
        return f"restarted; the scan is offered as {entry['state']}, {entry['done']} of {entry['tiles']} tiles durable"

    def resume(self) -> str:
        report = self._box.ctl(f"scan --resume {self._scan_id} --wait --json")
        check(report["outcome"] == "completed" and not report["holes"], report)
        return f"{report['outcome']}, coverage {report['coverage']}, no holes"

    def stop(self) -> str:
        self._box.ctl("home --wait")
        self._box.ctl(f"scan {LARGE}")
        wait_for(lambda: self._box.ctl("status --json")["done"] > 0, "the first tile")
        began_s = time.monotonic()
        self._box.sh(f"systemctl stop {UNIT}")
        took_s = time.monotonic() - began_s
        result = self._box.show("Result"), self._box.show("ExecMainStatus")
        check(result == ("success", "0"), result)
        return f"in mid-scan: result {result[0]}, exit {result[1]}, {took_s:.1f} s"

    def usage(self) -> str:
        with contextlib.suppress(AssertionError):  # the start fails, which is the point
            self._box.drop_in("--set stage.driver=nosuch")
        seen = self._box.show("ActiveState"), self._box.show("NRestarts"), self._box.show("ExecMainStatus")
        check(seen == ("failed", "0", "2"), seen)
        return "a wrong configuration fails at once with exit 2 and is not tried again"

    def start_limit(self) -> str:
        self._box.drop_in("")
        kills = 0
        while self._box.show("ActiveState") != "failed":
            if self._box.show("ActiveState") == "active":
                self._box.sh(f"systemctl kill -s KILL --kill-who=main {UNIT}", check=False)
                kills += 1
            check(kills < 20, "no start limit")
            time.sleep(0.3)
        return f"failed for good after {self._box.show('NRestarts')} restarts (StartLimitBurst=5)"

    def upgrade(self) -> str:
        self._box.sh(f"rm {DROP_IN}; systemctl daemon-reload; systemctl reset-failed {UNIT}")
        self._box.sh("sed -i 's/^lease_s = .*/lease_s = 7.0/' /etc/edge-scanner/config.toml")
        self._box.sh(f"systemctl start {UNIT}")
        scans = [one["scan_id"] for one in self._box.ctl("scans --json")]
        self._box.sh("/src/deploy/install.sh --wheelhouse /next")
        hello = self._box.ctl("hello --json")
        check((hello["version"], hello["lease_s"]) == ("0.99.0", 7.0), hello)
        check([one["scan_id"] for one in self._box.ctl("scans --json")] == scans, scans)
        return f"to {hello['version']}; configuration and {len(scans)} scans kept"

    def broken_upgrade(self) -> str:
        self._box.sh("rm -rf /tmp/broken && cp -r /next /tmp/broken && rm /tmp/broken/numpy*")
        code, said = self._box.sh("/src/deploy/install.sh --wheelhouse /tmp/broken", check=False)
        check(code != 0, said)
        check(self._box.ctl("hello --json")["version"] == "0.99.0", "not the previous one")
        return f"exit {code}; the previous release goes on"

    def dead_upgrade(self) -> str:
        self._box.sh(
            "rm -rf /tmp/dead && cp -r /next /tmp/dead && rm /tmp/dead/edge_scanner-0.1* && "
            f"python3 -c '{DEADEN}' /next/edge_scanner-0.99*.whl /tmp/dead/edge_scanner-0.99.1-py3-none-any.whl"
        )
        code, said = self._box.sh("/src/deploy/install.sh --wheelhouse /tmp/dead", check=False)
        check(code != 0 and "previous release is back" in said, said)
        return f"exit {code}, previous release back: {self._box.ctl('hello --json')['version']}"

    def uninstall(self) -> str:
        self._box.sh("/src/deploy/install.sh --uninstall")
        left = self._box.sh("ls -d /etc/edge-scanner /var/lib/edge-scanner /opt/edge-scanner 2>/dev/null", check=False)[
            1
        ]
        check(left.split() == ["/etc/edge-scanner", "/var/lib/edge-scanner"], left)
        check(self._box.sh(f"systemctl cat {UNIT}", check=False)[0] != 0, "the unit is still there")
        self._box.sh("/src/deploy/install.sh --uninstall --purge")
        gone = self._box.sh("ls -d /etc/edge-scanner /var/lib/edge-scanner; getent passwd edge-scanner", check=False)[0]
        check(gone != 0, "something is left")
        return "program and unit gone, configuration and scans kept; with --purge those too"


STEPS = (
    ("install on a bare root, from wheels", "install"),
    ("install again", "again"),
    ("exposure", "exposure"),
    ("start waits for READY", "ready"),
    ("socket modes", "sockets"),
    ("scan by a user of the group", "scan"),
    ("CURVE over TCP", "curve"),
    ("a thread hangs", "hang"),
    ("kill -9 in mid-scan", "killed"),
    ("resume", "resume"),
    ("stop", "stop"),
    ("wrong configuration", "usage"),
    ("start limit", "start_limit"),
    ("upgrade", "upgrade"),
    ("upgrade that cannot be installed", "broken_upgrade"),
    ("upgrade that does not start", "dead_upgrade"),
    ("uninstall", "uninstall"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--rig", type=Path, default=Path("/var/tmp/edge-scanner-rig"))
    parser.add_argument("--only", nargs="*", default=[], help="some steps; without install, on what the last run left")
    given = parser.parse_args()
    missing = [name for name in ("systemd-nspawn", "mmdebstrap", "nsenter") if shutil.which(name) is None]
    if missing or os.geteuid():
        sys.stderr.write(f"This lane needs root and {', '.join(missing) or 'nothing else'}.\n")
        return 2
    rig, record = Rig(given.rig), Record()
    if not given.only or "install" in given.only:
        rig.prepare()
    with Container(rig) as box:
        lane = Lane(box)
        systemd = box.sh("systemctl --version | head -1")[1]
        try:
            for name, step in STEPS:
                if not given.only or step in given.only:
                    record.step(name, getattr(lane, step))
        except BaseException:
            sys.stderr.write(box.sh(f"journalctl --no-pager -n 80 -u {UNIT}", check=False)[1] + "\n")
            raise
    if given.record:
        record.write(given.record, systemd)
    return 0


if __name__ == "__main__":
    sys.exit(main())
