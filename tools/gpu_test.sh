#!/usr/bin/env bash
# On a machine with a GPU, from the root of the repository: checks every op and the models, then times decoding.
#   tools/gpu_test.sh FOLDER [PART...]      FOLDER as tools/gpu_pack.sh made it
# Parts: ops, logits, sanitizer, bench; all of them when none is named. A short table comes last; everything goes to $OUT
# (default: the current folder).
set -uo pipefail
folder=$1
shift
parts=${*:-ops logits sanitizer bench}
out=${OUT:-.}
[ ! -e "$folder/gpu.tar.xz" ] || tar -C "$folder" -xJf "$folder/gpu.tar.xz"
export LD_LIBRARY_PATH="$PWD/$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
has() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
device=$(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader)
table=$out/table.txt
echo "$device, commit $(cat "$folder/commit")" | tee "$table"

# A gtest program: its counts to the table, its failures shown.
check() {
  local name=$1
  shift
  local started=$SECONDS
  "$folder/$name" --gtest_brief=1 "$@" >"$out/$name.log" 2>&1
  local status=$?
  grep -E 'Failure' "$out/$name.log" | sort | uniq -c | sort -rn | head -5
  grep -E '^(Google Test trace|.*: .* on cuda)' "$out/$name.log" | sort | uniq -c | sort -rn | head -25
  echo "$name: status $status, $(grep -cE '^\[  FAILED  \].*ms' "$out/$name.log") failed," \
    "$(grep -oE '[0-9]+ tests? .*ran' "$out/$name.log" | tail -1), $((SECONDS - started)) s" | tee -a "$table"
}

if has ops; then
  check backends_test
  check ops_test
fi
if has logits; then
  check nemotron_h_logits_test
  check llama_logits_test
  check quantised_logits_test
  check prefill_drift_test
  check prefix_cache_test
fi
if has sanitizer && command -v compute-sanitizer >/dev/null; then
  timeout 100 compute-sanitizer --error-exitcode 9 "$folder/ops_test" --gtest_brief=1 \
    --gtest_filter='NormLinear.Cases:Moe.Cases:Route.Cases:Attend.EveryBackend:Sample.EveryBackend:Mamba2.*EveryBackend' \
    >"$out/sanitizer.log" 2>&1
  echo "compute-sanitizer: status $?, $(grep -E 'ERROR SUMMARY' "$out/sanitizer.log")" | tee -a "$table"
fi
if has bench; then
  for precision in ${PRECISIONS:-Q4_0 Q8_0 BF16}; do
    timeout 200 "$folder/proa" bench NVIDIA-Nemotron-3-Nano-30B-A3B --load-format dummy --quantization "$precision" \
      --device cuda:0 --output-len 256 --batch-size 1 >"$out/bench-$precision.txt" 2>&1
    echo "--- $precision: status $?"
    tail -25 "$out/bench-$precision.txt"
  done
fi
echo "--- table"
cat "$table"
