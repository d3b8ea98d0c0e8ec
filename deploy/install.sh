#!/bin/sh
# Install, upgrade or remove the daemon as a systemd service. Idempotent: run it again to upgrade; configuration, keys
# and scans stay. Each run makes a new release beside the old one and switches to it only when it works.
#
#   deploy/install.sh [--wheelhouse DIR] [--onnxruntime WHEEL] [--no-start]
#   deploy/install.sh --uninstall [--purge]
#
#   --wheelhouse DIR    take every package from DIR, for a machine without network
#                       (made elsewhere by: pip wheel -w DIR '.[cpu]')
#   --onnxruntime FILE  a wheel of onnxruntime to use; on a Jetson the one made for its JetPack
#   --no-start          enable, but do not start
#   --uninstall         remove program and service; --purge also removes configuration, keys and ALL SCANS
set -eu

HERE=$(cd "$(dirname "$0")" && pwd)
SOURCE=$(dirname "$HERE")
HOME_DIR=/opt/edge-scanner
CONFIG=/etc/edge-scanner
UNIT=/etc/systemd/system/edge-scanner.service

say() { printf 'install: %s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

WHEELHOUSE= ONNXRUNTIME= START=yes UNINSTALL= PURGE=
while [ $# -gt 0 ]; do
    case $1 in
        --wheelhouse) [ $# -gt 1 ] || fail "--wheelhouse needs a folder."; WHEELHOUSE=$2; shift ;;
        --onnxruntime) [ $# -gt 1 ] || fail "--onnxruntime needs a wheel."; ONNXRUNTIME=$2; shift ;;
        --no-start) START= ;;
        --uninstall) UNINSTALL=yes ;;
        --purge) PURGE=yes ;;
        -h|--help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) fail "there is no option $1; see --help." ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || fail "run it as root (sudo $0)."
[ -z "$PURGE" ] || [ -n "$UNINSTALL" ] || fail "--purge goes with --uninstall."
command -v systemctl >/dev/null || fail "there is no systemd here; deploy/Dockerfile needs none."

if [ -n "$UNINSTALL" ]; then
    systemctl disable --now edge-scanner.service 2>/dev/null || true
    rm -f "$UNIT" /etc/sysusers.d/edge-scanner.conf /etc/tmpfiles.d/edge-scanner.conf \
        /etc/udev/rules.d/70-edge-scanner.rules /usr/local/bin/edge-scanner
    rm -rf "$HOME_DIR" /var/cache/edge-scanner
    if [ -n "$PURGE" ]; then
        rm -rf "$CONFIG" /var/lib/edge-scanner "$UNIT.d"
        userdel edge-scanner 2>/dev/null || true
    fi
    systemctl daemon-reload
    systemctl reset-failed edge-scanner.service 2>/dev/null || true
    say "removed.$([ -n "$PURGE" ] || echo " $CONFIG and /var/lib/edge-scanner are kept; --purge removes them.")"
    exit 0
fi

# -- Python ------------------------------------------------------------------------------------------------------
PYTHON=
for candidate in "${PYTHON_FOR_INSTALL:-}" python3.12 python3.11 python3; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then PYTHON=$candidate; break; fi
done
[ -n "$PYTHON" ] || fail "Python 3.11 or newer is needed (JetPack 6 brings 3.10: install python3.11 beside it)."
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || fail "the module venv is missing: apt-get install python3-venv."

# -- a new release beside the old one ------------------------------------------------------------------------------
JETSON=
if [ -e /etc/nv_tegra_release ] || grep -qa tegra /proc/device-tree/compatible 2>/dev/null; then JETSON=yes; fi
EXTRA='[cpu]'
[ -z "$JETSON$ONNXRUNTIME" ] || EXTRA=
RELEASE=$HOME_DIR/releases/$(date -u +%Y%m%dT%H%M%S)-$$
PREVIOUS=$(readlink "$HOME_DIR/current" 2>/dev/null || true)
mkdir -p "$HOME_DIR/releases"
trap 'rm -rf "$RELEASE"' EXIT
say "making $RELEASE"
"$PYTHON" -m venv "$RELEASE"
set -- --quiet --disable-pip-version-check --no-cache-dir
if [ -n "$WHEELHOUSE" ]; then
    [ -d "$WHEELHOUSE" ] || fail "there is no folder $WHEELHOUSE."
    set -- "$@" --no-index --find-links "$WHEELHOUSE"
    "$RELEASE/bin/pip" install "$@" "edge-scanner$EXTRA"
else
    "$RELEASE/bin/pip" install "$@" "$SOURCE$EXTRA"
fi
[ -z "$ONNXRUNTIME" ] || "$RELEASE/bin/pip" install "$@" "$ONNXRUNTIME"
VERSION=$("$RELEASE/bin/edge-scanner" --version) || fail "the new release does not run; nothing was changed."

# -- user, folders, devices, keys, configuration --------------------------------------------------------------------
install -D -m 644 "$HERE/sysusers.d/edge-scanner.conf" /etc/sysusers.d/edge-scanner.conf
install -D -m 644 "$HERE/tmpfiles.d/edge-scanner.conf" /etc/tmpfiles.d/edge-scanner.conf
install -D -m 644 "$HERE/udev/70-edge-scanner.rules" /etc/udev/rules.d/70-edge-scanner.rules
systemd-sysusers /etc/sysusers.d/edge-scanner.conf
systemd-tmpfiles --create /etc/tmpfiles.d/edge-scanner.conf
if command -v udevadm >/dev/null; then
    udevadm control --reload 2>/dev/null && udevadm trigger --subsystem-match=tty 2>/dev/null || true
fi
[ -e "$CONFIG/keys/server.key_secret" ] || "$RELEASE/bin/edge-scanner" keys new server --keys "$CONFIG/keys" >/dev/null
if [ -e "$CONFIG/config.toml" ]; then
    install -m 644 "$SOURCE/deploy/config/jetson.toml" "$CONFIG/config.toml.example"
    say "$CONFIG/config.toml is kept; config.toml.example has this version's keys"
else
    install -m 640 -g edge-scanner "$SOURCE/deploy/config/jetson.toml" "$CONFIG/config.toml"
    say "wrote $CONFIG/config.toml: name your drivers there"
fi

# -- switch --------------------------------------------------------------------------------------------------------
install -m 644 "$SOURCE/README.md" "$HOME_DIR/README.md"
install -D -m 644 "$SOURCE/systemd/edge-scanner.service" "$UNIT"
ln -sfn "$RELEASE" "$HOME_DIR/current.new" && mv -T "$HOME_DIR/current.new" "$HOME_DIR/current"
ln -sfn "$HOME_DIR/current/bin/edge-scanner" /usr/local/bin/edge-scanner
trap - EXIT
systemctl daemon-reload
systemctl --quiet enable edge-scanner.service
if [ -n "$START" ]; then
    systemctl reset-failed edge-scanner.service 2>/dev/null || true
    if ! systemctl restart edge-scanner.service; then
        if [ -n "$PREVIOUS" ] && [ -d "$PREVIOUS" ]; then
            ln -sfn "$PREVIOUS" "$HOME_DIR/current.new" && mv -T "$HOME_DIR/current.new" "$HOME_DIR/current"
            systemctl reset-failed edge-scanner.service 2>/dev/null || true
            systemctl restart edge-scanner.service || true
            rm -rf "$RELEASE"
            fail "$VERSION did not start; the previous release is back. See journalctl -u edge-scanner."
        fi
        fail "$VERSION did not start. See journalctl -u edge-scanner, and edge-scanner check --config $CONFIG/config.toml."
    fi
fi
for old in "$HOME_DIR"/releases/*; do
    [ "$old" = "$RELEASE" ] || [ "$old" = "$PREVIOUS" ] || rm -rf "$old"
done
say "$VERSION is installed. People who may drive the scanner join its group: adduser NAME edge-scanner"
[ -z "$JETSON" ] || [ -n "$ONNXRUNTIME" ] || say "on a Jetson, learned focus needs --onnxruntime WHEEL made for your JetPack"
