"""Files of every kind, folders and data sets of the hub, to rows and splits."""
