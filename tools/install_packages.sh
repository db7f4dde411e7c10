#!/usr/bin/env bash
# Installs the Debian packages that are missing; quiet and offline when none is.
#   tools/install_packages.sh build          what building and demo.sh need
#   tools/install_packages.sh build tests    and what test.sh needs on top
#   tools/install_packages.sh clients        what tools/install_clients.sh needs
# Needs root or sudo only when something is missing. This is the one list of packages.
set -euo pipefail

build=(g++ cmake ninja-build pkg-config libhwy-dev libsimdjson-dev nlohmann-json3-dev libcli11-dev libpcre2-dev
  libutf8proc-dev libedit-dev libboost1.81-dev libcurl4-openssl-dev libssl-dev python3 python3-pip ca-certificates)
tests=(libgtest-dev)
clients=(prometheus chromium python3-venv)

wanted=()
for group in "$@"; do
  case $group in
    build) wanted+=("${build[@]}") ;;
    tests) wanted+=("${tests[@]}") ;;
    clients) wanted+=("${clients[@]}") ;;
    *) echo "install_packages.sh: no group $group, only build, tests and clients" >&2; exit 2 ;;
  esac
done
if [ ${#wanted[@]} -eq 0 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "This is not Debian; please see to it that these are installed: ${wanted[*]}" >&2
  exit 0
fi

missing=()
for package in "${wanted[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "Installing Debian packages: ${missing[*]}" >&2
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "This needs root: run it as root, install sudo, or run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

# On a terminal apt shows what it does; in a pipe its output is kept and shown only when it fails.
apt() {
  local command=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@")
  if [ -t 2 ]; then
    "${command[@]}" >&2 </dev/tty
  else
    "${command[@]}" >"$log" 2>&1 </dev/null || { cat "$log" >&2; return 1; }
  fi
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

if ! apt update; then
  echo "apt-get update failed: is there a network, and are the sources in /etc/apt right?" >&2
  exit 1
fi
if ! apt install -y --no-install-recommends "${missing[@]}"; then
  echo "apt-get could not install: ${missing[*]}" >&2
  exit 1
fi
