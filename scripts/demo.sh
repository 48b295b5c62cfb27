#!/usr/bin/env bash
# Train, predict and evaluate, from an empty checkout: on the embedded phantoms, or with data=hippocampus on real volumes.
#   bash scripts/demo.sh [data=hippocampus] [any other key=value of medseg train]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh" ""
run="runs/demo/$(date +%Y-%m-%d_%H-%M-%S)"
data=phantom
budget=(trainer.max_time=00:00:02:45)
for word in "$@"; do
    case "$word" in
    data=*) data="${word#data=}" ;;
    trainer.max_time=*) budget=() ;; # a key is given once
    esac
done
"$python" -m medseg.cli train "${budget[@]}" "run_dir=$run" "$@"
report="$run/validation"
if [ "$data" = phantom ]; then # the phantoms have test cases with references, which training never saw
    folder=$("$python" -c "from medseg.data.catalogue import find_dataset; print(find_dataset('phantom'))")
    "$python" -m medseg.cli predict "model=$run" "input=$folder" "output=$run/test"
    "$python" -m medseg.cli evaluate "predictions=$run/test" "references=$folder/labelsTs" "output=$run/test_report"
    report="$run/test_report"
fi
echo
echo "model    $PWD/$run"
echo "report   $PWD/$report/report.html"
echo "picture  $PWD/$report/overlay.png"
