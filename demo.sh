#!/usr/bin/env bash
# From a fresh Debian 12 machine to a streamed answer: installs what is missing, builds, fetches a small model, answers.
#   ./demo.sh                       a prompt of ours
#   ./demo.sh "Why is snow white?"  yours
# The second time it starts in about a second and needs no network. Only the answer is written to standard output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case ${1:-} in
  -h | --help)
    sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0 ;;
esac
prompt=${*:-Explain in three short sentences why the sky is blue.}

tools/install_packages.sh build
tools/build.sh proa
model=$(tools/fetch_smollm2.sh)

if [ -t 2 ]; then printf '\033[2m%s run %s -p "%s"\033[0m\n' build/release/apps/proa "$model" "$prompt" >&2; fi
# The sampling that the model's makers recommend.
exec build/release/apps/proa run "$model" -p "$prompt" --temperature 0.2 --top-p 0.9 --max-tokens 300
