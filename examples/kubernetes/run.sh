#!/usr/bin/env bash
# All stages of a recipe as Jobs of Kubernetes, one after another.
#
#     docker build -t potstill .                        # or another image, and its name in the manifests
#     kubectl apply -f examples/kubernetes/storage.yaml # once; then copy recipe.yaml and its files to the volume
#     examples/kubernetes/run.sh
#
# The same command again continues after a failure: nothing that is stored is made again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

run_job() { # NAME: make the Job in standard input, and wait until it ends
    local name=$1 state=""
    kubectl delete --ignore-not-found --wait job "$name"
    kubectl apply -f -
    while [[ $state != *Complete* ]]; do
        sleep "${POLL_SECONDS:-5}"
        state=$(kubectl get job "$name" --output 'jsonpath={.status.conditions[?(@.status=="True")].type}')
        if [[ $state == *Failed* ]]; then
            echo "$name has failed: kubectl logs job/$name" >&2
            exit 1
        fi
    done
}

shards() { sed "s/\bsample\b/$1/" "$here/shards.yaml" | run_job "potstill-$1"; }
shards_without_gpu() { sed "s/\bsample\b/$1/; /nvidia.com/d" "$here/shards.yaml" | run_job "potstill-$1"; }
stage() { sed "s/\bselect\b/$1/" "$here/stage.yaml" | run_job "potstill-$1"; }

shards sample
shards_without_gpu filter
shards_without_gpu align
run_job potstill-train <"$here/train.yaml"
shards evaluate
stage select
shards test
stage report
