#!/bin/bash
# A job over plain machines, the same on each with its own number; whichever of them fails or is started again, all go on:
#
#     examples/cluster/machines.sh 0 2 10.0.0.1:6170 train.py      # on the first, whose address it is
#     examples/cluster/machines.sh 1 2 10.0.0.1:6170 train.py      # on the second
#
# train.py makes its Trainer with default_root_dir=RUNS and run_name=NAME, on a file system that all machines see, and
# calls fit(..., ckpt_path="last"). The machines must reach each other on all ports.
#
# When a process fails, all of the job end, within seconds, and each machine starts its part again; so does a machine
# that was off, once it runs this again. The first to come waits for the others. Ctrl-C or SIGTERM: no more tries.
node=$1 nodes=$2 master=$3
shift 3

RUNS=${RUNS:-runs}        # default_root_dir of the Trainer
NAME=${NAME:-mine}        # its run_name
DEVICES=${DEVICES:-0,1,2,3}
TRIES=${TRIES:-100}       # at most; a mistake in train.py fails each time
PAUSE=${PAUSE:-10}        # seconds, in which the other machines' processes end too

launcher=
trap 'TRIES=0; [ -n "$launcher" ] && kill -TERM "$launcher"' TERM INT

status=1
for ((try = 1; try <= TRIES; try++)); do
    python -m paddle.distributed.launch --master "$master" --nnodes "$nodes" --rank "$node" --devices "$DEVICES" \
        --log_dir "logs/$node-$try" "$@" &
    launcher=$!
    wait "$launcher"
    status=$?
    # A wait that a signal has cut short is taken up again: the ranks save before they end.
    while kill -0 "$launcher" 2> /dev/null; do wait "$launcher"; status=$?; done
    if [ "$status" -eq 0 ] || ((try >= TRIES)); then break; fi
    sleep "$PAUSE"
    # What another machine may have brought to its end meanwhile.
    if grep -qE '"status": "(finished|stopped)"' "$RUNS/$NAME/run.json" 2> /dev/null; then status=0; break; fi
    echo "try $try of node $node ended with $status; the same command once more"
done
exit "$status"
