"""One module per subcommand of mlxft; heavy imports happen inside the functions."""
