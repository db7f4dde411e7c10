#!/usr/bin/env bash
# Installs what the tests need, builds everything, runs all tests; the last line says how many passed, failed, were skipped.
#   ./test.sh            all
#   ./test.sh engine     only the test programs and scripts whose name contains that
# Environment: PROA_TEST_DATA, a folder of official tokenizers and chat templates, and PROA_SMOLLM2, the model file; without
# the former, or a network to fetch the latter, their tests are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case ${1:-} in
  -h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0 ;;
esac

tools/install_packages.sh build tests
tools/build.sh --tests
if [ -z "${PROA_SMOLLM2:-}" ]; then
  if model=$(tools/fetch_smollm2.sh); then
    export PROA_SMOLLM2=$model
  else
    echo "Without the model its tests are skipped" >&2
  fi
fi
exec python3 tests/scripts/run_tests.py "$@"
