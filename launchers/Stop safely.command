#!/bin/bash
# Lets the training at work finish its step and save, then ends it.
unset CDPATH && self=$0
while [ -L "$self" ]; do cd "$(dirname "$self")" && self=$(readlink "$(basename "$self")") || exit 66; done
cd "$(dirname "$self")/.." || exit 66
# shellcheck source=/dev/null
. launchers/window
launchers/mlxft launch stop "$@"
ended $?
