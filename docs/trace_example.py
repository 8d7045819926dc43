"""An analysis outside of mlxft, with numpy and safetensors alone: how far each block moved between checkpoints.

mlxft trace RUN --export out
python docs/trace_example.py out
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def read_update(tensors: dict[str, np.ndarray], path: str, scale: float) -> np.ndarray:
    """The update of one matrix, (out, in)."""
    if f"{path}.delta" in tensors:
        return tensors[f"{path}.delta"]
    return scale * (tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"]).T


def main(folder: Path) -> None:
    """Print, for each checkpoint, the norm of what was added to each block since the one before."""
    index = json.loads((folder / "series.json").read_text("utf-8"))
    before: dict[str, np.ndarray] = {}
    for entry in index["checkpoints"]:
        tensors = load_file(folder / entry["file"])
        squares: dict[str, float] = defaultdict(float)
        for path in index["matrices"]:
            update = read_update(tensors, path, index["scale"])
            moved = update - before.get(path, np.zeros_like(update))
            block = re.search(r"\.(\d+)\.", path)
            place = f"block {block[1]}" if block else path  # a matrix outside of the blocks, as of the embeddings
            squares[place] += float(np.sum(moved.astype(np.float64) ** 2))
            before[path] = update
        most = max(squares, key=lambda place: squares[place])
        total = sum(squares.values()) ** 0.5
        sys.stdout.write(f"step {entry['step']}: moved by {total:.3f}, most in {most}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
