#!/usr/bin/env bash
# All stages of a recipe as SLURM jobs, each of which waits for the one before it.
#
#     examples/slurm/submit.sh recipes/flan-t5-base.yaml
#
# Submit from a folder that all machines see under the same path: the run is runs/NAME in this folder. If a job fails,
# SLURM cancels those that wait for it, and the same command continues: nothing that is stored is made again.
set -euo pipefail

recipe=${1:?"usage: submit.sh RECIPE"}
: "${SHARDS:=8}" # processes of each shared stage
# Options of sbatch. GPU: a process that samples or evaluates; CPU: one that filters, aligns or reports; GROUP: training.
: "${GPU=--gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=24:00:00}"
: "${CPU=--cpus-per-task=4 --mem=32G --time=24:00:00}"
: "${GROUP=--nodes=1 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --mem=0 --time=24:00:00}"
# For a teacher behind vLLM: its model. TEACHER: the nodes that serve it, each with `REPLICAS` (see teacher.sbatch).
: "${TEACHER_MODEL=}" "${TEACHER=--nodes=2 --gpus-per-node=8 --mem=0 --time=24:00:00}"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
last=""

submit() { # STAGE [options of sbatch] SCRIPT [argument]...
    local stage=$1 options=(--parsable --requeue --kill-on-invalid-dep=yes --job-name="potstill-$1")
    shift
    if [[ -n $last ]]; then options+=(--dependency="afterok:$last"); fi
    last=$(sbatch "${options[@]}" "$@")
    last=${last%%;*} # on several clusters: JOB;CLUSTER
    echo "$stage: job $last"
}

# The options are several words.
# shellcheck disable=SC2086
{
    if [[ -n $TEACHER_MODEL ]]; then
        submit sample $TEACHER "$here/teacher.sbatch" "$recipe" "$TEACHER_MODEL"
    else
        submit sample $GPU --array="1-$SHARDS" "$here/shards.sbatch" sample "$recipe"
    fi
    submit filter $CPU --array="1-$SHARDS" "$here/shards.sbatch" filter "$recipe"
    submit align $CPU --array="1-$SHARDS" "$here/shards.sbatch" align "$recipe"
    submit train $GROUP "$here/group.sbatch" train "$recipe"
    submit evaluate $GPU --array="1-$SHARDS" "$here/shards.sbatch" evaluate "$recipe"
    submit select $CPU "$here/stage.sbatch" select "$recipe"
    if grep -q '^on_policy:' "$recipe"; then
        submit repair $GROUP "$here/group.sbatch" repair "$recipe"
    fi
    submit test $GPU --array="1-$SHARDS" "$here/shards.sbatch" test "$recipe"
    submit report $CPU "$here/stage.sbatch" report "$recipe"
}
