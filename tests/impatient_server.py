"""``mlxft`` whose server waits a short while only and has room for few: its limits are tested without waiting."""

from mlx_finetune.app.serve import server
from mlx_finetune.cli import main
from mlx_finetune.loopback import body, protocol, running

protocol.HEADER_SECONDS = 0.5
protocol.UNREAD_SECONDS = 0.5
protocol.MAX_CONNECTIONS = 40
body.BODY_SECONDS = 0.5
server.DRAIN_SECONDS = 2
running.KEEP_ALIVE_SECONDS = 1

if __name__ == "__main__":
    main()
