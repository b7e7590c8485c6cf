#!/usr/bin/env bash
# The measured table of benchmarks/results/real-images.md: one teacher, then for each seed the student alone and the
# distilled student, with the same data, split, number of epochs, batch size and learning rate. Restart it at will:
# finished runs are skipped and a killed one goes on.
#
#   DATA=folder WEIGHTS=tf_efficientnet_lite0.pth OUT=runs bash benchmarks/real_images.sh
set -euo pipefail
: "${DATA:?folder of the images}" "${WEIGHTS:?ImageNet weights of tf_efficientnet_lite0}"
OUT=${OUT:-runs} SIZE=${SIZE:-64} TEACHER_EPOCHS=${TEACHER_EPOCHS:-6} EPOCHS=${EPOCHS:-8} LR=${LR:-0.05} SEEDS=${SEEDS:-0 1 2}

carry_on() { # RUN COMMAND...: start the run, or resume it if it was begun
  local run=$1; shift
  if [ -f "$run/config.toml" ]; then "$@" --out "$run" --resume; else "$@" --out "$run"; fi
}

carry_on "$OUT/teacher" dspkd train tf_efficientnet_lite0 --data "$DATA" --weights "$WEIGHTS" --size "$SIZE" \
  --epochs "$TEACHER_EPOCHS" --lr 0.02 --seed 0
for seed in $SEEDS; do
  carry_on "$OUT/alone-$seed" dspkd train shufflenet_v2_x1_0 --data "$DATA" --split "$OUT/teacher/split.json" \
    --size "$SIZE" --epochs "$EPOCHS" --lr "$LR" --seed "$seed"
  carry_on "$OUT/distilled-$seed" dspkd distill --data "$DATA" --teacher "$OUT/teacher" --student shufflenet_v2_x1_0 \
    --size "$SIZE" --epochs "$EPOCHS" --lr "$LR" --seed "$seed" --set stages.0.settings.generator_width=256
done
