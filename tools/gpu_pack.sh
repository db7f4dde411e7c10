#!/usr/bin/env bash
# Gathers what a machine with a GPU needs to run the tests: programs of the preset `device`, stripped, and the libraries
# they load, packed. The folder is then carried there and given to tools/gpu_test.sh.
#   tools/gpu_pack.sh [BUILD [FOLDER]]      build/device, build/gpu
# PROGRAMS names some of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build/device}
folder=${2:-build/gpu}
rm -rf "$folder"
all=$folder/all
mkdir -p "$all/lib"
for program in ${PROGRAMS:-src/ops/ops_test src/backends/backends_test tests/nemotron_h_logits_test tests/quantised_logits_test \
  tests/llama_logits_test tests/prefix_cache_test tests/buoy_logits_test apps/proa}; do
  [ -e "$build/$program" ] || continue
  strip -o "$all/$(basename "$program")" "$build/$program"
  # The C and C++ libraries and the loader are the other machine's.
  ldd "$build/$program" | awk '/=> \// {print $1, $3}' |
    grep -vE '^(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux.*)\.so' | while read -r _ path; do
      cp -Lu "$path" "$all/lib/"
    done
done
git rev-parse --short HEAD >"$all/commit"
# The programs hold much the same code: a dictionary that reaches from one into the next halves it.
tar -C "$all" -c . | xz --lzma2=preset=3,dict=256MiB >"$folder/gpu.tar.xz"
rm -rf "$all"
du -sh "$folder"
