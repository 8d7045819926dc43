#!/bin/bash
# Trains several recipes one after another while the Mac stays awake; in the morning there is a summary.
unset CDPATH && self=$0
while [ -L "$self" ]; do cd "$(dirname "$self")" && self=$(readlink "$(basename "$self")") || exit 66; done
cd "$(dirname "$self")/.." || exit 66
# shellcheck source=/dev/null
. launchers/window
launchers/mlxft launch overnight "$@"
ended $?
