#!/usr/bin/env bash
# The whole way on real dermatoscopic images: teacher, student alone, distilled student (three seeds), export, verify, bench.
# Makes the numbers of results/real-images.md. It may be interrupted and started again: finished runs are not repeated.
#
#     benchmarks/real_images.sh DATA WEIGHTS OUT
#
# DATA     a folder in the ISIC2019 layout with GroundTruth.csv, metadata.csv and images/
# WEIGHTS  ImageNet weights of timm's tf_efficientnet_lite0 (.safetensors or a plain state dict)
# OUT      where runs, artifacts and results are written
set -euo pipefail
data=$1 weights=$2 out=$3
size=${SIZE:-96} teacher_epochs=${TEACHER_EPOCHS:-8} epochs=${EPOCHS:-12} lr=${LR:-0.02} seeds=${SEEDS:-"0 1 2"}
teacher=$out/runs/teacher

dspkd train tf_efficientnet_lite0 --data "$data" --weights "$weights" --size "$size" --epochs "$teacher_epochs" --seed 0 \
  --out "$teacher" --resume
for seed in $seeds; do
  # The same split, start, number of updates and peak learning rate for both.
  dspkd train shufflenet_v2_x1_0 --data "$data" --split "$teacher/split.json" --size "$size" --epochs "$epochs" --lr "$lr" \
    --seed "$seed" --out "$out/runs/alone-$seed" --resume
  dspkd distill --data "$data" --teacher "$teacher" --student shufflenet_v2_x1_0 --size "$size" --preset default \
    --epochs "$epochs" --lr "$lr" --set stages.0.settings.generator_width=256 --seed "$seed" \
    --out "$out/runs/student-$seed" --resume
  # The recipe that was found on the demo's drawn lesions: three quarters of the epochs in stage 1, equal weights in stage 2.
  first=$((epochs * 3 / 4))
  dspkd distill --data "$data" --teacher "$teacher" --student shufflenet_v2_x1_0 --size "$size" --preset default \
    --epochs "$epochs" --lr "$lr" --set stages.0.settings.generator_width=256 --seed "$seed" \
    --set "stages.0.epochs=$first" --set "stages.1.epochs=$((epochs - first))" \
    --set stages.1.settings.cross_entropy_weight=0.5 --set stages.1.settings.distillation_weight=0.5 \
    --out "$out/runs/short2-$seed" --resume
done

shown=${seeds%% *}
dspkd export "$out/runs/student-$shown" --data "$data" --target onnx,executorch --precision fp32 --out "$out/artifacts/student"
dspkd export "$teacher" --data "$data" --target onnx,executorch --precision fp32 --out "$out/artifacts/teacher"
dspkd verify "$out"/artifacts/*/*
dspkd bench "$out"/artifacts/*/* --teacher "$teacher" --student "$out/runs/student-$shown" --threads 1 --seconds 60 \
  --out "$out/results.json"
dspkd report "$out/results.json" --run "$teacher" $(for s in $seeds; do printf -- '--run %s --run %s ' "$out/runs/alone-$s" "$out/runs/student-$s"; done) \
  --out "$out/report.html"
