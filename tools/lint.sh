#!/usr/bin/env bash
# Formatting and linting: what clang-format-16 would change, what clang-tidy-16 says of the files that differ from REV.
#   tools/lint.sh            formatting of everything
#   tools/lint.sh REV        and clang-tidy for the .cpp files changed since REV (needs a configured build/release)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
  sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi
for tool in clang-format-16 clang-tidy-16; do
  command -v $tool >/dev/null || { echo "lint.sh: apt-get install $tool" >&2; exit 2; }
done
git ls-files '*.h' '*.cpp' | xargs clang-format-16 --dry-run -Werror
if [ -n "${1:-}" ]; then
  git diff --name-only --diff-filter=d "$1" -- '*.cpp' | xargs -r clang-tidy-16 -quiet -p build/release
fi
