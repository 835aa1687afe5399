#!/bin/bash
# A job of several nodes on Slurm, that puts itself into the queue again until the run is finished:
#
#     sbatch examples/cluster/slurm.sh train.py --epochs 90
#
# train.py makes its Trainer with default_root_dir=RUNS and run_name=NAME, on a file system that all nodes see, and calls
# fit(..., ckpt_path="last"): starting the run and going on with it are the same command.
#
# One task a node: Paddle's launcher, which starts a process for each GPU. Slurm sends SIGTERM to the tasks 120 s before
# the time is over; the ranks save at the next step and end. Give it longer where a step and a save take longer.
#SBATCH --job-name=train
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=16
#SBATCH --time=04:00:00 --signal=TERM@120
#SBATCH --requeue --open-mode=append

RUNS=${RUNS:-runs}      # default_root_dir of the Trainer
NAME=${NAME:-mine}      # its run_name
DEVICES=${DEVICES:-0,1,2,3}
PORT=${PORT:-6170}      # on the first node; the nodes must reach each other on all ports

# The first of the job's nodes is where ranks find each other.
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# `exec`, so that the signal reaches the launcher; SLURM_NODEID is each task's own. A node that fails ends the others.
srun --kill-on-bad-exit=1 bash -c '
    exec python -m paddle.distributed.launch --master "$0" --nnodes "$SLURM_NNODES" --rank "$SLURM_NODEID" \
        --devices "$1" --log_dir "logs/$SLURM_JOB_ID-$SLURM_RESTART_COUNT" "${@:2}"
' "$MASTER:$PORT" "$DEVICES" "$@"
status=$?

# Not by the exit code, of which launcher and srun make another, but by what the run says of itself. "interrupted": by
# SIGTERM, and saved. "running": nobody could write the end, as of a lost node. "failed" is yours to look at.
if grep -qE '"status": "(interrupted|running)"' "$RUNS/$NAME/run.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
