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

# Gtest programs side by side, as the reference they compare with is a few cores of the host: counts and the names of
# what failed to the table, failures shown. ops_test in shards, its tables take longest.
shards=${SHARDS:-5}
check() {
  local name=$1 shard=$2
  GTEST_TOTAL_SHARDS=$3 GTEST_SHARD_INDEX=$shard timeout 200 "$folder/$name" --gtest_brief=1 >"$out/$name.$shard.log" 2>&1
  local status=$?
  echo "$name, part $((shard + 1)) of $3: status $status, $(grep -oE '[0-9]+ tests? .*ran' "$out/$name.$shard.log" | tail -1)" \
    "$(grep -oE '^\[  FAILED  \] [^ ,]+' "$out/$name.$shard.log" | sort -u | tr '\n' ' ')" >>"$table"
}
started=$SECONDS
if has ops; then
  for ((shard = 0; shard < shards; ++shard)); do check ops_test $shard "$shards" & done
  check backends_test 0 1 &
fi
if has logits; then
  for name in nemotron_h_logits_test llama_logits_test quantised_logits_test prefix_cache_test buoy_logits_test prefill_drift_test; do
    [ ! -e "$folder/$name" ] || check $name 0 1 &
  done
fi
wait
grep -h -A6 Failure "$out"/*.log 2>/dev/null | grep -vE '^(--|Google Test trace)' | cut -c1-160 | awk '!seen[$0]++' | head -40
echo "tests took $((SECONDS - started)) s"
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
