"""What the operating system tells about the machine: its own tools, and what they print."""
