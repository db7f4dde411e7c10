#!/usr/bin/env bash
# Runs all fuzzers at once, each until it has made ten million runs or its time is over.
#   tools/fuzz_long.sh OUTDIR SECONDS [JOBS]      JOBS: processes together (default: one per core, at least one per fuzzer)
# The programs lie in $PROA_FUZZ_BIN (default build/fuzz/tests/fuzz; CONTRIBUTING.md says how to build them) and get seeds and
# dictionaries of tests/fuzz, and more seeds of $PROA_FUZZ_CORPUS/<reader> if that is set. OUTDIR/summary.txt gets a line per
# fuzzer; inputs that failed, the ends of the logs and a minimised corpus lie beside it. Exit status 1 when anything was found.
# PROA_FUZZ_RUNS is the number of runs; PROA_FUZZERS names some of the fuzzers ("http request").
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) && seconds=$2 && jobs=${3:-$(nproc)}
bin=$(cd "${PROA_FUZZ_BIN:-build/fuzz/tests/fuzz}" && pwd) || exit 2
runs=${PROA_FUZZ_RUNS:-10000000}
work=$(mktemp -d "${TMPDIR:-/tmp}/proa-fuzz.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Fuzzer, longest input, and its share of the processes: the slower, the more.
fuzzers=(safetensors:2048:1 gguf:4096:2 config:2048:2 tokenizer_json:4096:2 template:1024:7 detokenizer:512:2 tool_parser:1024:1 request:1024:1 http:1024:1)
if [ -n "${PROA_FUZZERS:-}" ]; then
  all=("${fuzzers[@]}") fuzzers=()
  for fuzzer in "${all[@]}"; do
    case " $PROA_FUZZERS " in *" ${fuzzer%%:*} "*) fuzzers+=("$fuzzer") ;; esac
  done
fi
shares=0
for fuzzer in "${fuzzers[@]}"; do shares=$((shares + ${fuzzer##*:})); done

export ASAN_OPTIONS=${ASAN_OPTIONS:-malloc_context_size=2:quarantine_size_mb=16}
# Some sandboxes do not let leaks be counted.
if ! "$bin/${fuzzers[0]%%:*}_fuzz" -runs=1 -artifact_prefix="$work/" >"$work/probe.log" 2>&1 &&
  grep -q 'LeakSanitizer has encountered a fatal error' "$work/probe.log"; then
  export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0
fi

names=() pids=()
for fuzzer in "${fuzzers[@]}"; do
  IFS=: read -r name max_len share <<<"$fuzzer"
  count=$(((jobs * share + shares / 2) / shares))
  [ "$count" -ge 1 ] || count=1
  dictionary=
  if [ -e "tests/fuzz/dictionaries/$name.dict" ]; then dictionary=-dict=tests/fuzz/dictionaries/$name.dict; fi
  mkdir -p "$work/$name" "$out/crashes"
  if [ -d "${PROA_FUZZ_CORPUS:-}/$name" ]; then cp -r "$PROA_FUZZ_CORPUS/$name/." "$work/$name/"; fi
  for i in $(seq "$count"); do
    # All processes of a fuzzer share the corpus that they grow.
    "$bin/${name}_fuzz" -runs=$((runs / count + 1)) -max_total_time="$seconds" -max_len="$max_len" -rss_limit_mb=2048 \
      -malloc_limit_mb=512 -timeout=20 -print_final_stats=1 -reload=30 -seed="$i" $dictionary \
      -artifact_prefix="$out/crashes/$name-" "$work/$name" "tests/fuzz/seeds/$name" >"$work/$name.$i.log" 2>&1 &
    names+=("$name.$i")
    pids+=($!)
  done
done
failed=0
for i in "${!pids[@]}"; do
  if ! wait "${pids[i]}"; then
    failed=1
    echo "${names[i]} ended early: $(grep -m1 -E 'ERROR|runtime error|SUMMARY' "$work/${names[i]}.log" || tail -n 1 "$work/${names[i]}.log")"
  fi
done

{
  printf '%-16s %12s %9s %9s %9s %9s %8s\n' fuzzer runs processes seconds exec/s coverage findings
  for fuzzer in "${fuzzers[@]}"; do
    name=${fuzzer%%:*}
    cat "$work/$name".*.log | awk -v name="$name" -v found="$(find "$out/crashes" -name "$name-*" -not -name "*slow-unit*" | wc -l)" '
      /stat::number_of_executed_units/ {runs += $2; processes++}
      /DONE .* in|Done [0-9]+ runs in/ {if (match($0, /in [0-9]+ second/)) {s = substr($0, RSTART + 3); if (s + 0 > seconds) seconds = s + 0}}
      / cov: / {for (i = 1; i < NF; i++) if ($i == "cov:" && $(i + 1) > cov) cov = $(i + 1)}
      END {printf "%-16s %12d %9d %9d %9d %9d %8d\n", name, runs, processes, seconds, seconds ? runs / seconds : 0, cov, found}'
  done
} | tee "$out/summary.txt"
for fuzzer in "${fuzzers[@]}"; do
  name=${fuzzer%%:*}
  mkdir -p "$out/corpus/$name"
  tail -q -n 40 "$work/$name".*.log >"$out/$name.log"
  timeout 30 "$bin/${name}_fuzz" -merge=1 -use_counters=0 -max_len=1024 "$out/corpus/$name" "tests/fuzz/seeds/$name" "$work/$name" >/dev/null 2>&1 &
done
wait
[ -z "$(find "$out/crashes" -type f -not -name '*slow-unit*')" ] || failed=1
exit $failed
