#!/bin/sh
# Start the head of the simulated cluster, in the foreground; Ctrl-C ends it and its nodes.
#   sh cluster/simulated.sh [FILE [option of `ray start` ...]]      FILE: cluster/simulated.yaml where none is given
# `ray get-auth-token --generate` comes first: the head asks everyone for that token.
set -eu
file=${1:-"$(dirname "$0")/simulated.yaml"}
[ $# -eq 0 ] || shift
head=fffffffffffffffffffffffffffffffffffffffffffffffffff00000 # provider.head_node_id
export RAY_AUTH_MODE=token RAY_FAKE_CLUSTER=1 RAY_enable_autoscaler_v2=1 AUTOSCALER_UPDATE_INTERVAL_S=1
export RAY_CLOUD_INSTANCE_ID="$head" RAY_OVERRIDE_NODE_ID_FOR_TESTING="$head" RAY_NODE_TYPE_NAME=ray.head.default
# The nodes bring their own resources, the head lends none.
exec ray start --head --block --disable-usage-stats --num-cpus 0 --num-gpus 0 \
    --object-store-memory 600000000 --autoscaling-config "$file" "$@"
