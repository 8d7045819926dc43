#!/bin/bash
# Makes the environment, checks this Mac, fetches a first model, puts launchers on the Desktop.
unset CDPATH && self=$0
while [ -L "$self" ]; do cd "$(dirname "$self")" && self=$(readlink "$(basename "$self")") || exit 66; done
cd "$(dirname "$self")/.." || exit 66
# shellcheck source=/dev/null
. launchers/window
launchers/mlxft launch setup "$@"
ended $?
