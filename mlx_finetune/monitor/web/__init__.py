"""The monitor as a web page of this machine: one process, plain files, server-sent events, nothing from elsewhere."""
