#!/bin/bash
# Asks a trained run some questions, and its base model the same ones, side by side.
unset CDPATH && self=$0
while [ -L "$self" ]; do cd "$(dirname "$self")" && self=$(readlink "$(basename "$self")") || exit 66; done
cd "$(dirname "$self")/.." || exit 66
# shellcheck source=/dev/null
. launchers/window
launchers/mlxft launch test "$@"
ended $?
