"""All stages of a recipe on a Ray cluster, one after another.

    ray job submit --address http://HEAD:8265 -- python /shared/examples/ray/run.py /shared/recipe.yaml --shards 8

Every machine of the cluster has potstill, and sees /shared. Ray starts a shard again if its machine dies, and the shard
continues: nothing that is stored is made again. The same command continues a job that has failed.
"""

import argparse
import subprocess
from pathlib import Path

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PORT = 29500


@ray.remote(max_retries=3)
def potstill(folder: str, *arguments: str) -> None:
    """A command of potstill in a folder that all machines see."""
    subprocess.run(["potstill", *arguments], cwd=folder, check=True)


@ray.remote
def torchrun(folder: str, node: int, nodes: int, processes: int, address: str, *arguments: str) -> None:
    """The processes of one machine of a group that trains together."""
    launcher = ["torchrun", f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={processes}"]
    launcher += [f"--master-addr={address}", f"--master-port={PORT}", "-m", "potstill"]
    subprocess.run([*launcher, *arguments], cwd=folder, check=True)


@ray.remote(num_cpus=0)
def find_address() -> str:
    return ray.util.get_node_ip_address()


def make_shards(folder: str, stage: str, recipe: str, shards: int, gpus: float, cpus: float) -> None:
    """A stage in shards, each in a task of its own. The last one merges them."""
    task = potstill.options(num_gpus=gpus, num_cpus=cpus)
    ray.get([task.remote(folder, stage, recipe, "--shard", f"{i}/{shards}") for i in range(1, shards + 1)])


def train(folder: str, recipe: str, nodes: int, processes: int, gpus: int, cpus: float) -> None:
    """The stage `train` on several machines at once."""
    group = placement_group([{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node) for node in range(nodes)]
    address = ray.get(find_address.options(scheduling_strategy=places[0]).remote())
    ray.get(
        [
            torchrun.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=place).remote(
                folder, node, nodes, processes, address, "train", recipe
            )
            for node, place in enumerate(places)
        ]
    )
    remove_placement_group(group)


def main() -> None:
    parser = argparse.ArgumentParser(description="All stages of a recipe on a Ray cluster.")
    parser.add_argument("recipe", type=Path, help="recipe file, in the folder that all machines see")
    parser.add_argument("--shards", type=int, default=8, help="processes of each shared stage")
    parser.add_argument("--gpus", type=float, default=1, help="GPUs of a process that samples or evaluates")
    parser.add_argument("--cpus", type=float, default=4, help="CPUs of each process")
    parser.add_argument("--train-nodes", type=int, default=1, help="machines that train")
    parser.add_argument("--train-processes", type=int, default=8, help="processes of each of them, one for each GPU")
    chosen = parser.parse_args()

    ray.init()
    folder, recipe = str(chosen.recipe.resolve().parent), chosen.recipe.name
    one = potstill.options(num_cpus=chosen.cpus)
    make_shards(folder, "sample", recipe, chosen.shards, chosen.gpus, chosen.cpus)
    for stage in ("filter", "align"):
        make_shards(folder, stage, recipe, chosen.shards, 0, chosen.cpus)
    gpus = chosen.train_processes if chosen.gpus else 0
    train(folder, recipe, chosen.train_nodes, chosen.train_processes, gpus, chosen.cpus)
    make_shards(folder, "evaluate", recipe, chosen.shards, chosen.gpus, chosen.cpus)
    ray.get(one.remote(folder, "select", recipe))
    make_shards(folder, "test", recipe, chosen.shards, chosen.gpus, chosen.cpus)
    ray.get(one.remote(folder, "report", recipe))


if __name__ == "__main__":
    main()
