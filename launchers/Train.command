#!/bin/bash
# Trains from a recipe that is chosen, or makes one from your data. Closing the window does not stop it.
unset CDPATH && self=$0
while [ -L "$self" ]; do cd "$(dirname "$self")" && self=$(readlink "$(basename "$self")") || exit 66; done
cd "$(dirname "$self")/.." || exit 66
# shellcheck source=/dev/null
. launchers/window
launchers/mlxft launch train "$@"
ended $?
