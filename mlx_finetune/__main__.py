"""``python -m mlx_finetune`` is ``mlxft``."""

from mlx_finetune.cli import main

if __name__ == "__main__":
    main()
