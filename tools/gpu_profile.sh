#!/usr/bin/env bash
# Time and bytes of each kernel of one decode step, by Nsight Compute: kernels run one by one, without the overlap they
# have in a recorded step.
#   tools/gpu_profile.sh FOLDER PRECISION      FOLDER as tools/gpu_test.sh unpacked it; writes $OUT/profile-PRECISION.csv
set -uo pipefail
folder=$1
precision=$2
out=${OUT:-.}
export LD_LIBRARY_PATH="$PWD/$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
timeout 120 ncu --clock-control none --csv --metrics gpu__time_duration.sum,dram__bytes_read.sum,launch__grid_size \
  -k 'regex:matvec_kernel|fused|attend_kernel|attend_one_kernel|embed_kernel|draw_kernel' --launch-count 420 \
  "$folder/proa" bench NVIDIA-Nemotron-3-Nano-30B-A3B --load-format dummy --quantization "$precision" --device cuda:0 --no-check \
  --input-len 8 --output-len 4 --num-iters 1 --max-model-len 2048 >"$out/ncu-$precision.csv" 2>&1
python3 - "$out/ncu-$precision.csv" <<'P' | tee "$out/profile-$precision.csv"
import collections, csv, sys
lines = [l for l in open(sys.argv[1], errors="replace") if l.startswith('"')]
launches = collections.OrderedDict()
for row in csv.DictReader(lines):
    launch = launches.setdefault(row["ID"], {"name": row["Kernel Name"]})
    value = float(row["Metric Value"].replace(",", ""))
    unit = row["Metric Unit"]
    scale = {"us": 1, "ns": 1e-3, "usecond": 1, "nsecond": 1e-3, "ms": 1e3, "Mbyte": 1, "Kbyte": 1e-3, "Gbyte": 1e3,
             "byte": 1e-6}.get(unit, 1)
    launch[row["Metric Name"]] = value * scale
    if row["Metric Name"] == "launch__grid_size": launch["grid"] = int(value)
# A decode is the longest run from an embed_kernel to the next.
steps = [[]]
for launch in launches.values():
    if "embed_kernel" in launch["name"]:
        steps.append([])
    steps[-1].append(launch)
whole = max(steps, key=len)
groups = collections.OrderedDict()
for launch in whole:
    key = (launch["name"].split("(")[0][-60:], launch.get("grid"), round(launch.get("dram__bytes_read.sum", 0), 0))
    g = groups.setdefault(key, [0, 0.0, 0.0])
    g[0] += 1
    g[1] += launch.get("gpu__time_duration.sum", 0)
    g[2] += launch.get("dram__bytes_read.sum", 0)
print("kernel,grid,MB each,launches,us each,us,MB,GB/s")
for (name, grid, _), (n, us, mb) in groups.items():
    print(f"{name},{grid},{mb / n:.2f},{n},{us / n:.2f},{us:.1f},{mb:.1f},{mb / us * 1e3 if us else 0:.0f}")
print(f"sum,,,{len(whole)},,{sum(g[1] for g in groups.values()):.1f},{sum(g[2] for g in groups.values()):.1f},")
P
