#!/usr/bin/env bash
# Configures build/release when it must be and builds it; a progress line on a terminal, silence in a pipe.
#   tools/build.sh TARGET...           those targets, without tests
#   tools/build.sh --tests             everything with its tests
# What the compiler says is in build/release/build.log and shown when the build fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=build/release

with_tests=OFF
if [ "${1:-}" = --tests ]; then
  with_tests=ON
  shift
fi

cached() { sed -n "s/^$1:[A-Z]*=//p" "$folder/CMakeCache.txt" 2>/dev/null || true; }
# A folder that was moved or copied keeps paths of its old place.
if [ -e "$folder/CMakeCache.txt" ] && [ "$(cached CMAKE_HOME_DIRECTORY)" != "$PWD" ]; then
  rm -rf "$folder"
fi
mkdir -p "$folder"
log=$folder/build.log
if [ ! -e "$folder/build.ninja" ] || { [ $with_tests = ON ] && [ "$(cached PROA_TESTS)" != ON ]; }; then
  echo "Configuring $folder" >&2
  launcher=()
  if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  if ! cmake --preset release -DPROA_TESTS=$with_tests "${launcher[@]}" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$folder/build.ninja"
    exit 1
  fi
fi

# A compiler takes up to 1.5 GB, so a machine with many cores and little memory runs fewer of them.
jobs=$(nproc)
memory_jobs=$(awk '/^MemAvailable/ {n = int($2 / 1500000); print (n > 1 ? n : 1)}' /proc/meminfo)
[ "$jobs" -le "$memory_jobs" ] || jobs=$memory_jobs

announced=
progress() {  # reads ninja's output
  local line
  : >"$log"
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$log"
    case $line in
      \[*/*\]*Building* | \[*/*\]*Linking*)
        if [ -t 2 ]; then
          printf '\r\033[K%s' "${line:0:$((${COLUMNS:-80} - 1))}" >&2
        elif [ -z "$announced" ]; then
          echo "Building $folder with $jobs jobs" >&2
          announced=1
        fi ;;
    esac
  done
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}
if ! NINJA_STATUS='[%f/%t] ' ninja -C "$folder" -j "$jobs" "$@" 2>&1 </dev/null | progress; then
  sed -n '/FAILED/,$p' "$log" >&2
  grep -q FAILED "$log" || tail -n 20 "$log" >&2
  echo "The build failed; all of its output is in $log" >&2
  exit 1
fi
