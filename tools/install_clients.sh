#!/usr/bin/env bash
# Installs the clients that tests/scripts/clients_test.py runs: Python packages into virtual environments, prometheus and
# chromium as Debian's packages. Prints the command that runs them. Not among them: kanoa-mlops, a checkout of which
# KANOA_MLOPS names.
#   tools/install_clients.sh [FOLDER]      default build/clients
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/install_packages.sh clients
mkdir -p "${1:-build/clients}"
folder=$(cd "${1:-build/clients}" && pwd)
python3 -m venv "$folder"
"$folder/bin/pip" install -q openai langchain-openai litellm kanoa matplotlib prometheus-client schemathesis 'lm-eval[api]' requests playwright
python3 -m venv "$folder/aiperf" # its requirements contradict the others'
"$folder/aiperf/bin/pip" install -q aiperf
ln -sf "$folder/aiperf/bin/aiperf" "$folder/bin/aiperf"
echo "PATH=$folder/bin:\$PATH $folder/bin/python tests/scripts/run_tests.py clients"
